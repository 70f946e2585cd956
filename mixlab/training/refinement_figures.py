"""Figures of a refiner's updates: what a row's answer is worth, and how rows halt.

Shapes: B rows, L positions, V tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixlab.ops.stablemax import label_nats
from mixlab.parallel import World
from mixlab.training.carry import PAD, Carry, SegmentLoss


def row_nats(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """(B,) mean nats over the labels of each row; (B, L, V) logits, (B, L) labels, PAD left out."""
    asked = labels != PAD
    nats = label_nats(logits, labels, loss_type)
    return torch.where(asked, nats, 0).sum(dim=1) / asked.sum(dim=1).clamp(min=1)


def accuracies(right: Tensor, carry: Carry, rows: Tensor) -> dict[str, Tensor]:
    """Means over the chosen rows; 0 where there are none, so read them with `count`."""
    asked = carry.labels != PAD
    blank = asked & ~carry.given
    n_rows = rows.sum().clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(rows, values, 0).sum() / n_rows

    return {
        "count": rows.sum(),
        "accuracy": mean((right & asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)),
        "blank_accuracy": mean((right & blank).sum(dim=1) / blank.sum(dim=1).clamp(min=1)),
        "exact_accuracy": mean(right.all(dim=1).to(torch.float32)),
    }


@torch.no_grad()
def segment_figures(result: SegmentLoss, carry: Carry, wants: Tensor) -> dict[str, Tensor]:
    """Figures of one update of the carry scheduler, still on the device."""
    halted, n = carry.halted, len(carry.halted)
    figures = accuracies(result.right, carry, halted)
    count = figures["count"].clamp(min=1)
    figures["train/reasoning_steps"] = torch.where(halted, carry.steps, 0).sum() / count
    figures["halt_rate"] = halted.sum() / n
    figures["halt_rate_learned"] = wants.sum() / n
    figures["forced_halt_rate"] = (halted & ~wants).sum() / count
    figures.update({name: loss.mean() for name, loss in result.heads.items()})
    logits = result.segment.halt_logits
    if logits is not None:
        figures["q_halt_mean"] = logits[:, 0].sigmoid().mean()
        agrees = (halt_score_sign(logits)) == result.right.all(dim=1)
        figures["q_halt_accuracy"] = agrees.to(torch.float32).mean()
        if logits.shape[1] == 2:
            figures["q_continue_mean"] = logits[:, 1].sigmoid().mean()
    return figures


def halt_score_sign(logits: Tensor) -> Tensor:
    """(B,) bool: the head calls the answer right."""
    return logits[:, 0] >= 0


OF_HALTED = (
    "accuracy", "blank_accuracy", "exact_accuracy", "train/reasoning_steps", "forced_halt_rate"
)  # fmt: skip
"""Figures that are means over the `count` rows that were judged; others are means over all rows."""


def shares_of_ranks(figures: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """This rank's part of figures that are to be added up over the ranks."""
    if world.size == 1:
        return dict(figures)
    count = figures["count"]
    weights = dict.fromkeys(OF_HALTED, count) | {"count": 1}
    return {name: value * weights.get(name, 1 / world.size) for name, value in figures.items()}


def means_over_ranks(figures: Mapping[str, Tensor], world: World) -> Mapping[str, Tensor]:
    """The figures of all ranks' rows from the sums of `shares_of_ranks`."""
    if world.size == 1:
        return figures
    count = figures["count"].clamp(min=1)
    return {n: value / count if n in OF_HALTED else value for n, value in figures.items()}
