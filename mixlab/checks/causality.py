"""Can an output see the tokens after it? Twice: by gradients, and by changing those tokens.

A model that can reads its own answer: its loss then says nothing, and its text is useless, because
there is no future to copy from when it writes.
"""

import itertools

import torch
from torch import Tensor

from mixlab.checks.base import (
    ROUNDING,
    CheckContext,
    Finding,
    logits_of,
    other_tokens,
    random_tokens,
    relative_difference,
)
from mixlab.checks.loops import loop_settings
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops

SHORT = 70
"""Tokens for the gradients: just past 64, the usual chunk of chunked kernels."""
N_CUTS = 6
CHUNK = 64
"""Later tokens are replaced from every multiple of this on: chunks leak where they meet."""
QUICK_FLOPS, THOROUGH_FLOPS = 1e9, 5e9
"""What may be spent on further places: a leak at a single place shows nowhere else."""
ROWS_AT_ONCE = 16


def check_causality(context: CheckContext) -> Finding:
    """Exactly zero gradient from outputs to later inputs, and no effect of later tokens.

    A looped model must pass at every depth, and with tokens that leave early. Where prompts are
    read both ways, later is what comes after the prompt.
    """
    model = context.probe()
    # Training mode: routing with a capacity, for one, may differ from evaluation.
    model.train()
    n_leaks, n_pairs, largest, effect = 0, 0, 0.0, 0.0
    n_prefixes = (0, SHORT // 3) if context.prefix_lm else (0,)
    settings = loop_settings(model, thorough=context.thorough)
    for loops, n_prefix in itertools.product(settings, n_prefixes):
        for is_packed in (False, True) if loops is settings[0] else (False,):
            leaks, pairs, size = _gradient_leaks(model, SHORT, loops, n_prefix, is_packed)
            n_leaks, n_pairs, largest = n_leaks + leaks, n_pairs + pairs, max(largest, size)
        flops = (THOROUGH_FLOPS if context.thorough else QUICK_FLOPS) / len(settings)
        moved = _effect_of_later_tokens(model, context.seq_len, loops, bool(n_prefix), flops)
        effect = max(effect, moved)
    has_passed = n_leaks == 0 and effect <= ROUNDING
    figures = {
        "later_inputs_with_gradient": n_leaks,
        "later_inputs_looked_at": n_pairs,
        "largest_gradient": largest,
        "effect_of_later_tokens": effect,
        "seq_len": context.seq_len,
    }
    measured = (
        f"{n_leaks} of {n_pairs} later inputs have a gradient; replacing later tokens at length "
        f"{context.seq_len} moves earlier logits by {effect:.1e} of their size"
    )
    if has_passed:
        meaning = "No output can see the tokens that it has to predict."
    else:
        meaning = (
            "Outputs see later tokens, so the model can copy its answers: no loss of it means "
            "anything. Look for a missing or an additive mask, or a convolution or router that "
            "looks ahead."
        )
    return Finding("pass" if has_passed else "fail", measured, meaning, figures)


def _prompt(
    tokens: Tensor, n_prefix: int, loops: Loops | None
) -> tuple[Tensor | None, Loops | None, Tensor | None]:
    """What `logits_of` needs for a prompt of the first `n_prefix` tokens; 0: there is none."""
    if not n_prefix:
        return None, loops, None
    prefix = torch.zeros_like(tokens, dtype=torch.bool)
    prefix[:, :n_prefix] = True
    return torch.zeros_like(tokens), loops, prefix


def _cuts(length: int, least: int = 1) -> list[int]:
    """Lengths of the earlier part: both ends, and places between."""
    places = torch.linspace(least, length - 1, N_CUTS).round().long()
    return sorted(set(places.tolist()))


def _gradient_leaks(
    model: LanguageModel, length: int, loops: Loops | None, n_prefix: int, is_packed: bool
) -> tuple[int, int, float]:
    """Later inputs with a gradient that is not exactly zero, those looked at, the largest.

    A random mixture of all earlier logits is differentiated by the embeddings of later tokens. A
    row of several documents may take another way through a mixer than one document.
    """
    kept: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = model.embed_tokens.register_forward_hook(catch)
    try:
        tokens = random_tokens(model, 1, length, seed=2)
        segments, loops, prefix = _prompt(tokens, n_prefix, loops)
        if is_packed:
            segments = (torch.arange(length) >= length // 2).long()[None]
        logits = logits_of(model, tokens, segments, loops, prefix)
    finally:
        handle.remove()
    generator = torch.Generator().manual_seed(3)
    mixture = logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    n_leaks = n_pairs = 0
    largest = 0.0
    for cut in _cuts(length, least=max(1, n_prefix)):
        (grad,) = torch.autograd.grad(
            mixture[:, :cut].sum(), kept[-1], retain_graph=True, allow_unused=True
        )
        n_pairs += length - cut
        if grad is None:
            continue
        later = grad[0, cut:].abs().amax(dim=-1)  # (length - cut,)
        n_leaks += int((later != 0).sum())  # NaN counts
        largest = max(largest, later.max().item())
    return n_leaks, n_pairs, largest


@torch.no_grad()
def _effect_of_later_tokens(
    model: LanguageModel, length: int, loops: Loops | None, has_prompt: bool, flops: float
) -> float:
    """Largest change of earlier logits when all later tokens are replaced.

    From the middle, the last token, the seams of chunks, and as many other places as `flops` pay
    for. Not held to the bit: other tokens send other numbers of rows to an expert, and a matrix
    product of another size may round its rows otherwise.
    """
    n_prompt = length // 3 if has_prompt else 0
    tokens = random_tokens(model, 1, length, seed=4)
    others = other_tokens(model, tokens, seed=5)

    def run(rows: Tensor) -> Tensor:
        return logits_of(model, rows, *_prompt(rows, n_prompt, loops))

    before, worst = run(tokens)[0], 0.0
    cuts = _places(length, n_prompt, int(flops / _forward_flops(model, length)))
    for some in (cuts[i : i + ROWS_AT_ONCE] for i in range(0, len(cuts), ROWS_AT_ONCE)):
        is_later = torch.arange(length) >= torch.tensor(some)[:, None]  # (cuts, T)
        rows = torch.where(is_later, others, tokens)
        for cut, row, together in zip(some, rows, run(rows), strict=True):
            moved = relative_difference(before[:cut], together[:cut])
            if moved > max(worst, ROUNDING):  # not by the other rows, which is another check's
                moved = relative_difference(before[:cut], run(row[None])[0, :cut])
            worst = max(worst, moved)
    return worst


def _places(length: int, n_prompt: int, n_more: int) -> list[int]:
    """Where later tokens begin: seams of chunks, middle and end, and evenly between."""
    seams = {*range(CHUNK, length, CHUNK), length // 2, length - 1}
    between = torch.linspace(1, length - 1, min(n_more, length)).round().long().tolist()
    return sorted(cut for cut in seams | set(between) if cut > n_prompt)


def _forward_flops(model: LanguageModel, length: int) -> float:
    """Of one row, about: every weight once per token, and every pair of tokens in every layer."""
    n_params = sum(parameter.numel() for parameter in model.parameters())
    pairs = len(model.blocks) * length * model.embed_tokens.weight.shape[1]
    return 2.0 * length * (n_params + 2 * pairs)
