"""What a run computed, without what a clock said: equal for equal runs."""

import json
from pathlib import Path
from typing import Any

from mixlab.core.run_dir import RunDir
from mixlab.training import checkpoint as checkpoints

TIMES = {"elapsed_s", "eval_s", "save_s", "tokens_per_s", "mfu"}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log without their times."""
    text = path.read_text() if path.exists() else ""  # puzzles leave no samples
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in lines]


def contents(path: Path) -> dict[str, Any]:
    """Logs, kept steps, best one, and every byte of the last checkpoint's tensors."""
    run = RunDir.open(path)
    folder = run.checkpoints_path
    kept = checkpoints.steps(folder)
    last = checkpoints.load(checkpoints.step_path(folder, kept[-1]))
    found: dict[str, Any] = {
        "metrics": rows(run.metrics_path),
        "evals": rows(run.evals_path),
        "samples": rows(run.samples_path),
        "kept": kept,
        "best": checkpoints.read_best(folder),
        "progress": {k: v for k, v in last.state["progress"].items() if k not in TIMES},
        "status": (run.read_json("summary.json") or {}).get("status"),
    }
    for group, members in last.tensors.items():
        for name, tensor in members.items():
            found[f"{group}/{name}"] = (str(tensor.dtype), tensor.contiguous().numpy().tobytes())
    return found


def assert_same_run(got: Path, want: Path) -> None:
    """Every figure, every tensor, every kept checkpoint is the same, bit for bit."""
    a, b = contents(got), contents(want)
    assert a.keys() == b.keys()
    different = [key for key in a if a[key] != b[key]]
    assert not different, f"{got} differs from {want} in {different[:6]}: {_first(a, b, different)}"


def _first(a: dict[str, Any], b: dict[str, Any], keys: list[str]) -> str:
    for key in keys:
        if isinstance(a[key], list):
            pairs = [(x, y) for x, y in zip(a[key], b[key], strict=False) if x != y]
            return f"{len(a[key])} and {len(b[key])} rows, {pairs[:1]}"
        if "/" not in key:
            return f"{a[key]} and {b[key]}"
    return "tensors only"
