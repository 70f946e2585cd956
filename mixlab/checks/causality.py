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
        leaks, pairs, size = _gradient_leaks(model, SHORT, loops, n_prefix)
        n_leaks, n_pairs, largest = n_leaks + leaks, n_pairs + pairs, max(largest, size)
        moved = _effect_of_later_tokens(model, context.seq_len, loops, bool(n_prefix))
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
    model: LanguageModel, length: int, loops: Loops | None, n_prefix: int = 0
) -> tuple[int, int, float]:
    """Later inputs with a gradient that is not exactly zero, those looked at, the largest.

    A random mixture of all earlier logits is differentiated by the embeddings of later tokens.
    """
    kept: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = model.embed_tokens.register_forward_hook(catch)
    try:
        tokens = random_tokens(model, 1, length, seed=2)
        logits = logits_of(model, tokens, *_prompt(tokens, n_prefix, loops))
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
    model: LanguageModel, length: int, loops: Loops | None, has_prompt: bool = False
) -> float:
    """Largest change of earlier logits when all later tokens are replaced, over a few cuts.

    Not held to the bit: other tokens send other numbers of rows to an expert, and a matrix product
    of another size may round its rows otherwise.
    """
    tokens = random_tokens(model, 1, length, seed=4)
    settings = _prompt(tokens, length // 3 if has_prompt else 0, loops)
    before = logits_of(model, tokens, *settings)
    worst = 0.0
    for cut in {length // 2, length - 1} - {0}:
        changed = tokens.clone()
        changed[:, cut:] = other_tokens(model, tokens[:, cut:], seed=5)
        after = logits_of(model, changed, *settings)
        worst = max(worst, relative_difference(before[:, :cut], after[:, :cut]))
    return worst
