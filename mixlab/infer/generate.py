"""Prompt in, tokens out, one cached step at a time."""

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch

from mixlab.core.errors import LabError
from mixlab.infer.sampler import SamplingConfig, sample
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.dtypes import at_least_float32


@torch.inference_mode()
def generate_tokens(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    eos_id: int | None = None,
    n_known_tokens: int | None = None,
    loops: Loops | None = None,
) -> Iterator[int]:
    """Continue `prompt` by up to `max_new_tokens` tokens, ending before `eos_id`.

    The prompt is read once and its state kept, so each further token costs one step. Tokens from
    `n_known_tokens` on (rows of the embedding that no text maps to) are never drawn. A looped model
    loops as `loops` says; absent, to its trained depth, and tokens leave by its exit rule.

    Raises:
        LabError: the prompt is empty, prompt and answer exceed the model's `max_seq_len`, or a
            number is not one.
    """
    if not prompt:
        raise LabError("prompt = '': expected at least one token to continue.")
    if not _is_whole(max_new_tokens) or max_new_tokens < 1:
        raise LabError(
            f"max_new_tokens = {max_new_tokens!r}: expected a whole number of at least 1."
        )
    if not _is_whole(seed) or not 0 <= seed < 2**63:
        raise LabError(f"seed = {seed!r}: expected a whole number from 0 to 2**63 - 1.")
    room = model.cfg.max_seq_len - len(prompt)
    if room < 1:
        raise LabError(
            f"prompt of {len(prompt)} tokens: expected fewer than model.max_seq_len = "
            f"{model.cfg.max_seq_len}, so that there is room for an answer. Shorten the prompt."
        )
    if max_new_tokens > room:
        raise LabError(
            f"prompt of {len(prompt)} tokens and {max_new_tokens} new ones: expected at most "
            f"model.max_seq_len = {model.cfg.max_seq_len} together. Shorten the prompt or ask for "
            f"at most {room} tokens."
        )
    device = model.embed_tokens.weight.device
    generator = torch.Generator(device).manual_seed(int(seed))
    tokens = torch.tensor([list(prompt)], device=device)
    state = model.initial_state(1)
    if loops is None and model.recursion is not None:
        loops = Loops(may_exit=True)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            out = model(tokens, state, last_only=True, loops=loops)
            state = out.state
            logits = at_least_float32(out.logits[:, -1])  # (1, vocab)
            if n_known_tokens is not None:
                logits[:, n_known_tokens:] = -torch.inf
            tokens = sample(logits, sampling, generator)[:, None]
            token = int(tokens)
            if token == eos_id:
                return
            yield token
    finally:
        model.train(was_training)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
