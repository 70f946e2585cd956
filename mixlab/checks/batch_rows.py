"""Does a sequence's result depend on which other sequences share its batch?"""

import torch
from torch import Tensor

from mixlab.checks.base import (
    ROUNDING,
    CheckContext,
    Finding,
    logits_of,
    other_tokens,
    pristine,
    random_tokens,
    relative_difference,
)
from mixlab.checks.loops import loop_settings
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops

N_ROWS = 4
LENGTH = 24


@torch.no_grad()
def check_batch_rows(context: CheckContext) -> Finding:
    """A row alone, with other mates, in another order; in training and in evaluation mode."""
    model = context.probe()
    tokens = random_tokens(model, N_ROWS, LENGTH, seed=7)
    figures = {}
    for mode in ("training", "evaluation"):
        model.train(mode == "training")
        for loops in loop_settings(model, thorough=context.thorough):
            for name, difference in _differences(model, tokens, loops).items():
                figures[name] = max(figures.get(name, 0.0), difference)
    worst = max(figures.values())
    measured = (
        f"logits of a row move by {figures['alone']:.1e} of their size when it is alone, "
        f"{figures['other_mates']:.1e} with other mates, {figures['reordered']:.1e} when rows "
        "change places"
    )
    if worst <= ROUNDING:
        meaning = "Every sequence is computed as if it were alone."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Sequences of a batch influence each other: losses depend on batch size and order, and "
        "evaluation measures something that does not happen when one text is written. Look for "
        "tokens that compete for places across the batch, or a state that crosses rows."
    )
    return Finding("fail", measured, meaning, figures)


def _differences(model: LanguageModel, tokens: Tensor, loops: Loops | None) -> dict[str, float]:
    def run(rows: Tensor) -> Tensor:
        # No call may see what another one left behind.
        return logits_of(pristine(model), rows, loops=loops)

    together = run(tokens)
    alone = torch.cat([run(tokens[:1]), run(tokens[-1:])])
    mates = tokens.clone()
    mates[1:] = other_tokens(model, tokens[1:], seed=8)
    crowd = mates.clone()
    crowd[1:] = tokens[:1]  # everyone wants the same experts
    order = torch.arange(N_ROWS).roll(1)
    return {
        "alone": relative_difference(together[[0, -1]], alone),
        "other_mates": max(
            relative_difference(together[:1], run(mates)[:1]),
            relative_difference(together[:1], run(crowd)[:1]),
        ),
        "reordered": relative_difference(together[order], run(tokens[order])),
    }
