"""Figures of a refiner on a fixed set of puzzles: accuracy by segment, halting, calibration.

Exact is all labels right; blank counts what the question did not state; valid is what the task's
rules accept. A halt is premature where the answer is wrong; it is late where the answer was right
and the head did not say so. Everything here runs all puzzles through all segments and asks what
halting would have done (counterfactual).
Shapes: n puzzles, L positions, S segments.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from mixlab.infer.refinement import Refining, Step
from mixlab.nn.evaluating import evaluating
from mixlab.nn.recursion.refiner import Refiner
from mixlab.ops.stablemax import label_nats

PAD = 0
"""The label of positions that nothing is asked of."""
N_BINS = 10
"""Bins of equal width in the calibration."""


class Trace(NamedTuple):
    """What happened to every puzzle at every segment."""

    answers: np.ndarray  # (S, n, L) uint8
    right: np.ndarray  # (S, n) bool
    accuracy: np.ndarray  # (S, n) share of labels that are right
    blank_accuracy: np.ndarray  # (S, n)
    loss_nats: np.ndarray  # (S, n) mean over a puzzle's labels
    scores: np.ndarray  # (S, n) exit scores
    q_halt: np.ndarray  # (S, n) chance of halting in this segment, sigma(logit); 0 without a head
    q_continue: np.ndarray  # (S, n) worth of going on; 0 where it is not learned
    delta_H: np.ndarray  # (S, n) relative change of z_H
    delta_L: np.ndarray  # (S, n)


@torch.no_grad()
def trace(
    model: Refiner,
    inputs: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    *,
    n_steps: int,
    batch_size: int,
    loss_type: str = "softmax",
    compute_dtype: torch.dtype | None = None,
) -> Trace:
    """Run every puzzle (n, L) for `n_steps` segments with the weights as they are."""
    device = model.embed_tokens.device
    parts = []
    with evaluating(model):
        for start in range(0, len(inputs), batch_size):
            x, y, g = (
                torch.from_numpy(array[start : start + batch_size]).to(device)
                for array in (inputs, labels, given)
            )
            with torch.autocast(device.type, compute_dtype, enabled=compute_dtype is not None):
                parts.append(_trace_batch(model, x.long(), y.long(), g, n_steps, loss_type))
    return Trace(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))


def _trace_batch(
    model: Refiner,
    x: torch.Tensor,
    y: torch.Tensor,
    given: torch.Tensor,
    n_steps: int,
    loss_type: str,
) -> list[np.ndarray]:
    asked = y != PAD
    blank = asked & ~given
    rows: list[tuple[torch.Tensor, ...]] = []
    under_way = Refining(model, x)
    before = under_way.state
    for _ in range(n_steps):
        step = under_way.advance()
        answer = step.logits.argmax(dim=-1)
        is_right = (answer == y) | ~asked
        nats = torch.where(asked, label_nats(step.logits, y, loss_type), 0).sum(dim=1)
        deltas = [
            (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1).clamp(min=1e-6)
            for new, old in zip(step.state, before, strict=True)
        ]
        rows.append(
            (
                answer.to(torch.uint8),
                is_right.all(dim=1),
                _share(is_right & asked, asked),
                _share(is_right & blank, blank),
                nats / asked.sum(dim=1).clamp(min=1),
                step.score,
                *_chances(step),
                *deltas,
            )
        )
        before = step.state
    return [
        torch.stack(values).to(torch.float32 if values[0].is_floating_point() else values[0].dtype)
        .cpu().numpy() for values in zip(*rows, strict=True)
    ]  # fmt: skip


def _chances(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """What the halting head says of halting and of going on; (n,) each."""
    nothing = torch.zeros_like(step.score)
    if step.heads is None:
        return nothing, nothing
    halt = step.heads[:, 0].sigmoid()
    return halt, step.heads[:, 1].sigmoid() if step.heads.shape[1] == 2 else nothing


def _share(hits: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return hits.sum(dim=1) / of.sum(dim=1).clamp(min=1)


def figures(t: Trace, *, n_steps: int, min_steps: int, has_head: bool) -> dict[str, Any]:
    """One row of plain figures at `n_steps` segments, the trained depth."""
    right, scores = t.right[:n_steps], t.scores[:n_steps]
    last = n_steps - 1
    row: dict[str, Any] = {
        "loss_nats": float(t.loss_nats[last].mean()),
        "accuracy": float(t.accuracy[last].mean()),
        "exact_accuracy": float(right[last].mean()),
        "blank_accuracy": float(t.blank_accuracy[last].mean()),
        "regress_rate": float((right.any(axis=0) & ~right[last]).mean()),
        "accuracy_by_step": [float(share) for share in t.right.mean(axis=1)],
        "state_delta_norm": {
            "H": [float(d) for d in t.delta_H.mean(axis=1)],
            "L": [float(d) for d in t.delta_L.mean(axis=1)],
        },
        "n_examples": int(right.shape[1]),
    }
    if has_head:
        row.update(halting_figures(right, scores, min_steps))
        for name, chances in (("q_halt", t.q_halt), ("q_continue", t.q_continue)):
            if chances.any():
                row[f"{name}_mean"] = float(chances[:n_steps].mean())
                row[f"{name}_mean_by_step"] = [float(q) for q in chances[:n_steps].mean(axis=1)]
    return row


def halting_figures(right: np.ndarray, scores: np.ndarray, min_steps: int) -> dict[str, Any]:
    """How well the head knows, over all segments together and by segment; (S, n) each."""
    halts = scores > 0
    exits = exit_steps(scores, 0.0, min_steps)
    probability = sigmoid(scores)
    n_steps = len(scores)
    return {
        "q_halt_accuracy": float((halts == right).mean()),
        "premature_halt_rate": float((halts & ~right).mean()),
        "late_halt_rate": float((~halts & right).mean()),
        "halt_ece": calibration_error(probability.ravel(), right.ravel()),
        "halt_auroc": auroc(scores.ravel(), right.ravel()),
        "halt_auroc_by_step": [auroc(s, r) for s, r in zip(scores, right, strict=True)],
        "eval_counterfactual/reasoning_steps": float(exits.mean()),
        "eval_counterfactual/exact_accuracy": float(at_exit(right, exits).mean()),
        "eval_counterfactual/forced_halt_rate": float((~halts[min_steps - 1 :].any(axis=0)).mean()),
        "eval_counterfactual/halt_histogram": np.bincount(exits, minlength=n_steps + 1)[
            1:
        ].tolist(),
    }


def exit_steps(scores: np.ndarray, threshold: float, min_steps: int) -> np.ndarray:
    """(n,) the first segment, from 1, whose score is above the threshold; else the last."""
    above = scores > threshold
    above[: min_steps - 1] = False
    above[-1] = True
    return above.argmax(axis=0) + 1


def at_exit(values: np.ndarray, exits: np.ndarray) -> np.ndarray:
    """(n,) of the (S, n) values, those at each puzzle's exit."""
    return values[exits - 1, np.arange(values.shape[1])]


def choose_threshold(
    right: np.ndarray, scores: np.ndarray, *, min_steps: int, max_drop: float
) -> tuple[float | None, list[dict[str, float]]]:
    """The threshold with the fewest segments whose accuracy drops by at most `max_drop`.

    Chosen from -2 to 8 in halves, with the whole curve; None where no threshold holds the budget.
    To be called with validation puzzles, at all segments of the trained depth.
    """
    full = right[-1].mean()
    curve = []
    for threshold in np.arange(-2.0, 8.5, 0.5):
        exits = exit_steps(scores, float(threshold), min_steps)
        curve.append(
            {
                "exit_threshold": float(threshold),
                "exact_accuracy": float(at_exit(right, exits).mean()),
                "reasoning_steps": float(exits.mean()),
            }
        )
    within = [point for point in curve if full - point["exact_accuracy"] <= max_drop + 1e-9]
    best = min(within, key=lambda point: point["reasoning_steps"], default=None)
    return None if best is None else best["exit_threshold"], curve


def auroc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Chance that a right answer scores above a wrong one, ties half; None if all are alike."""
    n_right = int(right.sum())
    n_wrong = len(right) - n_right
    if n_right == 0 or n_wrong == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]  # mean rank of each tie, from 1
    total = float(ranks[right.astype(bool)].sum())
    return (total - n_right * (n_right + 1) / 2) / (n_right * n_wrong)


def calibration(probability: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Mean probability, share that is right and count of every bin that is not empty."""
    place = np.minimum((probability * N_BINS).astype(int), N_BINS - 1)
    return [
        {
            "probability": float(probability[place == i].mean()),
            "right": float(right[place == i].mean()),
            "count": int((place == i).sum()),
        }
        for i in range(N_BINS)
        if (place == i).any()
    ]


def calibration_error(probability: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean distance of probability and truth over the bins."""
    bins = calibration(probability, right)
    gaps = [b["count"] * abs(b["probability"] - b["right"]) for b in bins]
    return float(sum(gaps) / len(probability))


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(scores, -60, 60)))
