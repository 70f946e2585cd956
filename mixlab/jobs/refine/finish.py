"""What a refine run leaves behind: test figures, early exit, and what the pictures show."""

from typing import Any

import numpy as np
import torch

from mixlab.core.run_dir import RunDir
from mixlab.evals.refinement import (
    Trace,
    calibration,
    choose_threshold,
    sigmoid,
)
from mixlab.infer.refinement import Solutions, solve, solve_by_rollouts
from mixlab.jobs.refine.session import RefineSession
from mixlab.jobs.screen import Screen
from mixlab.training.language_modelling import autocast

Row = dict[str, Any]


def conclude_refinement(run: RunDir, session: RefineSession, step: int, screen: Screen) -> Row:
    """Measure the test puzzles to twice the trained depth, choose the exit threshold on validation
    puzzles, and solve the test puzzles with it. Writes refinement.json."""
    with screen.task("Measuring the test puzzles", None):
        traced = session.trace("test", 2 * session.max_steps)
        test = session.row("test", traced)
    model, train = session.config.model, session.config.train
    found: Row = {"trained_steps": session.max_steps, "step": step}
    found["effective_depth"] = model.n_layers * session.max_steps
    per_token = session.budget.train_flops_per_token
    found["flops_train_step"] = per_token * model.length * train.batch_size
    found["accuracy_by_step"] = test["accuracy_by_step"]
    found["film"] = _film(session, traced)
    if session.config.model.halting.n_logits:
        right, scores = traced.right[: session.max_steps], traced.scores[: session.max_steps]
        found["calibration"] = calibration(sigmoid(scores).ravel(), right.ravel())
        with screen.task("Solving the test puzzles with early exit", None):
            found.update(_early_exit(session, test))
    elif session.config.inference.num_rollouts > 1:
        screen.note("Rollouts were left out: without a halting head nothing can choose among them.")
    run.write_json("refinement.json", found)
    kept = ("exit_threshold", "early_exit", "rollouts", "trained_steps", "effective_depth",
            "flops_train_step")  # fmt: skip
    return {"test": test, "refinement": {key: found[key] for key in kept if key in found}}


def _early_exit(session: RefineSession, test: Row) -> Row:
    """The chosen threshold, the curve it was chosen from, and what it gives on test puzzles."""
    settings, halting = session.config.inference, session.config.model.halting
    seen = session.trace("validation", session.max_steps)
    chosen, curve = choose_threshold(
        seen.right, seen.scores, min_steps=halting.halt_min_steps, max_drop=settings.exit_max_drop
    )
    threshold = settings.exit_threshold
    if threshold is None:
        threshold = chosen
    found: Row = {"exit_threshold": threshold, "exit_curve": curve}
    if threshold is None:
        session.notes.append(
            f"No exit threshold keeps validation accuracy within {settings.exit_max_drop:g} of "
            "all segments, so there is no early exit. Train longer, or raise "
            "inference.exit_max_drop."
        )
    else:
        eager = solve_test(session, exit_threshold=threshold)
        row = _solved(session, eager, eager.steps)
        row["speedup_early_exit"] = session.max_steps / row["reasoning_steps"]
        row["accuracy_drop_early_exit"] = test["exact_accuracy"] - row["exact_accuracy"]
        counts = torch.bincount(eager.steps, minlength=session.max_steps + 1)[1:]
        row["halt_histogram"] = counts.tolist()
        found["early_exit"] = row
    if settings.num_rollouts > 1:
        tried = solve_test(session, num_rollouts=settings.num_rollouts, exit_threshold=threshold)
        row = _solved(session, tried, tried.steps)
        found["rollouts"] = {"num_rollouts": settings.num_rollouts, **row}
    return found


def solve_test(
    session: RefineSession, *, exit_threshold: float | None = None, num_rollouts: int = 1
) -> Solutions:
    """The test puzzles solved with the weights that are evaluated."""
    if session.ema is None:
        return _solve(session, exit_threshold, num_rollouts)
    with session.ema.applied():
        return _solve(session, exit_threshold, num_rollouts)


def _solve(session: RefineSession, exit_threshold: float | None, num_rollouts: int) -> Solutions:
    model, puzzles = session.model, session.data.sets["test"]
    device, size = model.embed_tokens.device, session.config.eval.batch_size
    model.eval()
    parts = []
    for start in range(0, len(puzzles), size):
        inputs = torch.from_numpy(puzzles.inputs[start : start + size]).long().to(device)
        with autocast(device, session.hardware.compute_dtype):
            if num_rollouts == 1:
                solved = solve(model, inputs, exit_threshold=exit_threshold)
            else:
                solved = solve_by_rollouts(
                    model,
                    inputs,
                    num_rollouts=num_rollouts,
                    rollout_noise_std=session.config.inference.rollout_noise_std,
                    seed=session.config.seed + start,
                    exit_threshold=exit_threshold,
                )
        parts.append(Solutions(*(tensor.cpu() for tensor in solved)))
    model.train()
    return Solutions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _solved(session: RefineSession, solved: Solutions, steps: torch.Tensor) -> Row:
    puzzles = session.data.sets["test"]
    answers = np.where(puzzles.labels == 0, 0, solved.answers.numpy()).astype(np.uint8)
    verdicts = session.data.task.check_many(puzzles.inputs, answers, puzzles.labels)
    mean = float(steps.to(torch.float64).mean())
    return {
        "exact_accuracy": float(verdicts.exact.mean()),
        "valid_accuracy": float(verdicts.valid.mean()),
        "reasoning_steps": mean,
        "flops_per_example": mean * session.budget.segment_flops,
    }


def _film(session: RefineSession, traced: Trace) -> Row:
    """One test puzzle by segment: the one that took longest to come right, of those that did."""
    right = traced.right[: session.max_steps]
    puzzles, task = session.data.sets["test"], session.data.task
    first = np.where(right[-1], right.argmax(axis=0), -1)
    index = int(first.argmax())
    chars = np.array(list(task.alphabet))
    rows, cols = task.shape

    def grid(tokens: np.ndarray) -> list[str]:
        return ["".join(row) for row in chars[tokens].reshape(rows, cols)]

    return {
        "index": index,
        "task": task.name,
        "question": grid(puzzles.inputs[index]),
        "label": grid(puzzles.labels[index]),
        "given": ["".join("01"[int(x)] for x in row)
                  for row in puzzles.given[index].reshape(rows, cols)],
        "answers": [grid(answer[index]) for answer in traced.answers[: session.max_steps]],
    }  # fmt: skip
