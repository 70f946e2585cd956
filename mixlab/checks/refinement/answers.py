"""Answers, targets and figures: what is asked, who may see it, and whether reports say what is."""

import math

import numpy as np
import torch
from torch import Tensor

from mixlab.checks.base import Finding
from mixlab.checks.refinement.base import (
    N_ROWS,
    TOLERANCE,
    RefinerContext,
    questions,
    relative,
)
from mixlab.evals.refinement import figures as figures_of
from mixlab.evals.refinement import trace
from mixlab.infer.refinement import Refining
from mixlab.training.carry import PAD

REPORTED = 1e-5
"""Between float32 means and float64: rounding leaves about 1e-7, a wrong definition far more."""


def check_stepwise(context: RefinerContext) -> Finding:
    """Segments as training runs them over its carry, against solving the same puzzles."""
    model = context.probe()
    objective = context.objective(model)
    carry = objective.fresh(0)
    n_steps = min(model.cfg.halting.halt_max_steps, 3)
    worst = 0.0
    with torch.no_grad():
        solving = Refining(model, carry.inputs)
        for _ in range(n_steps):
            trained = objective._segment_loss(carry)
            solved = solving.advance()
            worst = max(
                worst,
                relative(trained.segment.state.z_H, solved.state.z_H),
                relative(trained.segment.state.z_L, solved.state.z_L),
            )
            carry, _ = objective._next(carry, trained)
    measured = f"states differ by {worst:.1e} of their size over {n_steps} segments"
    figures = {"difference": worst, "segments": n_steps}
    if worst <= TOLERANCE:
        meaning = "Puzzles are solved by the same function that was trained."
        return Finding("pass", measured, meaning, figures)
    meaning = "Solving goes another way than training: reported accuracies are of another function."
    return Finding("fail", measured, meaning, figures)


def check_labels(context: RefinerContext) -> Finding:
    """The loss is that of the labels, and the logits are the same whatever the labels are."""
    model = context.probe()
    objective = context.objective(model)
    carry = objective.fresh(1)  # whose rows lack 1, 2, 3 and no labels
    with torch.no_grad():
        result = objective._segment_loss(carry)
        others = objective._segment_loss(carry._replace(labels=carry.labels.flip(0)))
    expected = oracle_nats(result.segment.logits, carry.labels, context.loss_type)
    difference = float(np.abs(result.lm_loss.double().numpy() - expected).max())
    seen = relative(result.segment.logits, others.segment.logits)
    n_false = _contradictions(context)
    figures = {"loss_difference": difference, "label_influence": seen, "contradictions": n_false}
    measured = (
        f"loss within {difference:.1e} nats of the labels' own; other labels move the logits by "
        f"{seen:.1e} of their size"
    )
    if n_false is not None:
        measured += f"; {n_false} training answers contradict their question"
    if difference <= REPORTED and seen == 0.0 and not n_false:
        meaning = "The model is asked for the stored answer and cannot see it."
        return Finding("pass", measured, meaning, figures)
    meaning = "The model is asked for something else than the answer, or it sees the answer."
    return Finding("fail", measured, meaning, figures)


def _contradictions(context: RefinerContext) -> int | None:
    """Training puzzles, augmented as in training, whose answer the rules do not accept."""
    if context.sets is None or context.task is None:
        return None
    some = context.sets["train"]
    inputs, labels = some.inputs[:200], some.labels[:200]
    inputs, labels = context.task.augment(inputs, labels, 1, np.arange(len(inputs)))
    return int((~context.task.valid(inputs, labels, labels)).sum())


def check_evaluator(context: RefinerContext) -> Finding:
    """The figures of the evaluator, against NumPy in float64 on logits that are taken anew."""
    model = context.build().eval()
    n_steps = min(model.cfg.halting.halt_max_steps, 2)
    inputs = questions(model, 200)
    with torch.no_grad():
        solving = Refining(model, inputs)
        logits = [solving.advance().logits for _ in range(n_steps)][-1]
    labels = logits.argmax(dim=-1).clamp(min=1)
    labels[0] = labels[0].roll(1)  # one row that is most likely wrong
    labels[1, 0] = PAD
    given = np.zeros(tuple(inputs.shape), bool)
    given[:, ::2] = True
    traced = trace(
        model, inputs.numpy().astype(np.uint8), labels.numpy().astype(np.uint8), given,
        n_steps=n_steps, batch_size=3, loss_type=context.loss_type,
    )  # fmt: skip
    row = figures_of(traced, n_steps=n_steps, min_steps=1, has_head=False)
    expected = _expected(logits, labels, given, context.loss_type)
    worst = max(abs(row[name] - value) for name, value in expected.items())
    measured = (
        f"loss {row['loss_nats']:.4f}, {', '.join(list(expected)[1:])}: within {worst:.1e} of "
        f"figures taken by other means, on {N_ROWS} puzzles"
    )
    figures = {"difference": worst, **expected}
    if worst <= REPORTED * max(1.0, expected["loss_nats"]):
        return Finding("pass", measured, "Reports say what the logits say.", figures)
    meaning = "Reported figures are not those of the model's answers."
    return Finding("fail", measured, meaning, figures)


def _expected(logits: Tensor, labels: Tensor, given: np.ndarray, kind: str) -> dict[str, float]:
    asked = labels.numpy() != PAD
    right = logits.argmax(dim=-1).numpy() == labels.numpy()
    blank = asked & ~given
    return {
        "loss_nats": float(oracle_nats(logits, labels, kind).mean()),
        "accuracy": float(np.mean([r[a].mean() for r, a in zip(right, asked, strict=True)])),
        "blank_accuracy": float(np.mean([r[b].mean() for r, b in zip(right, blank, strict=True)])),
        "exact_accuracy": float((right | ~asked).all(axis=1).mean()),
    }


def oracle_nats(logits: Tensor, labels: Tensor, loss_type: str) -> np.ndarray:
    """(B,) mean surprise at each row's labels, by NumPy in float64."""
    x, y = logits.detach().double().numpy(), labels.numpy()
    if loss_type == "stablemax":
        s = np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))
        p = s / s.sum(axis=-1, keepdims=True)
    else:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
    rows = []
    for i in range(len(y)):
        asked = np.flatnonzero(y[i] != PAD)
        rows.append(-math.fsum(np.log(p[i, asked, y[i, asked]])) / max(1, len(asked)))
    return np.array(rows)
