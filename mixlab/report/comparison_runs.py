"""What a comparison reads of one run folder: figures, curves, and what they were measured on."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir
from mixlab.report.material import Facts, Material, at, number
from mixlab.report.series import column, where

FINISHED = ("finished", "stopped early")
_KEPT = ("loss_nats", "bits_per_byte", "accuracy", "exact_accuracy")


@dataclass(frozen=True)
class RunFigures:
    """One finished run."""

    path: Path
    seed: int
    config: Facts
    data: Facts  # the data manifest
    final: Facts  # the last validation row
    test: Facts
    context: Facts  # ln V, unigram entropy, bytes per target
    status: str
    steps: int
    tokens: int
    flops: float
    train_s: float  # evaluations and saves included
    update_s: float | None  # mean of one update, evaluations left out
    tokens_per_s: float | None  # from update_s
    n_params: int
    n_active_params: int
    flops_per_token: float
    device: str
    precision: str
    code: str  # versions of mixlab and torch, and the commit where it is known
    peak_memory_bytes: float | None  # measured, where the run says it
    curves: dict[str, list[float | None]] = field(repr=False)


def read_run(path: Path) -> RunFigures:
    """The figures of a finished run.

    Raises:
        RunError: no run, or one that is not finished or was never evaluated.
    """
    m = Material(RunDir.open(path))
    if m.problems:
        raise RunError(f"run {path}: cannot be compared: {m.problems[0]}")
    status = m.summary.get("status")
    if status not in FINISHED:
        raise RunError(_unfinished(path, m))
    rows = where(m.evals, split="validation")
    final = m.eval_row("final")
    if number(final.get("loss_nats")) is None:
        raise RunError(
            f"run {path}: has no evaluation on validation data, so there is nothing to compare. "
            f"Train it again with: mixlab train {m.run.config_path}"
        )
    tokens, n_steps = int(m.total("tokens", "tokens") or 0), int(m.total("steps", "step") or 0)
    update_s = _update_seconds(m)
    return RunFigures(
        path=path,
        seed=int(m.config.get("seed", 0)),
        config=m.config,
        data=m.data,
        final=final,
        test=m.eval_row("test"),
        context=m.context,
        status=str(status),
        steps=n_steps,
        tokens=tokens,
        flops=float(m.total("flops", "flops") or 0.0),
        train_s=float(m.total("train_s", "elapsed_s") or 0.0),
        update_s=update_s,
        tokens_per_s=tokens / n_steps / update_s if update_s and n_steps else None,
        n_params=int(m.summary.get("n_params") or 0),
        n_active_params=int(m.summary.get("n_active_params") or 0),
        flops_per_token=float(m.summary.get("flops_per_token") or 0.0),
        device=str(m.summary.get("device", "")),
        precision=str(m.summary.get("precision", "")),
        code=_code(m),
        peak_memory_bytes=number(m.summary.get("peak_memory_bytes")),
        curves=_curves(rows, number(m.summary.get("flops_per_token")) or 0.0),
    )


def _code(m: Material) -> str:
    packages = m.environment.get("packages") or {}
    commit = at(m.environment, "git.commit")
    versions = [f"{name} {packages[name]}" for name in ("mixlab", "torch") if name in packages]
    return ", ".join([*versions, *([f"commit {str(commit)[:10]}"] if commit else [])])


def _unfinished(path: Path, m: Material) -> str:
    status = m.summary.get("status")
    if status == "failed":
        why = str(m.summary.get("error", "no reason was recorded"))
        return f"run {path}: failed, so it cannot be compared: {why}"
    what = "is not finished" if status is None else f"is {status}"
    reached = m.total("steps", "step")
    at_step = f" (step {reached:.0f})" if reached is not None else ""
    return (
        f"run {path}: {what}{at_step}; losses compare only at the end of a schedule. "
        f"Finish it first: mixlab train --resume {path}"
    )


def _update_seconds(m: Material) -> float | None:
    """The mean time between two updates that have no evaluation between them."""
    steps, elapsed = column(m.metrics, "step"), column(m.metrics, "elapsed_s")
    if len(steps) < 2:
        return None
    evaluated = {int(s) for s in column(m.evals, "step") if math.isfinite(s)}
    follows = np.diff(steps) == 1
    clean = np.array([int(s) not in evaluated if math.isfinite(s) else False for s in steps[:-1]])
    spans = np.diff(elapsed)[follows & clean & np.isfinite(np.diff(elapsed))]
    spans = spans[spans > 0]
    return float(spans.mean()) if len(spans) else None


def _curves(rows: dict[str, list[Any]], flops_per_token: float) -> dict[str, list[float | None]]:
    """Validation figures by step, tokens, FLOPs and seconds."""
    steps, tokens = rows.get("step", []), rows.get("tokens", [])
    found: dict[str, list[float | None]] = {
        "steps": [number(x) for x in steps],
        "tokens": [number(x) for x in tokens],
        "flops": [None if number(x) is None else x * flops_per_token for x in tokens],
        "seconds": [number(x) for x in rows.get("elapsed_s", [])],
    }
    found.update({key: [number(x) for x in rows[key]] for key in _KEPT if key in rows})
    return found
