"""Everything a run folder holds, read so that a missing or damaged file is told and not fatal."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mixlab.core.config import read_yaml
from mixlab.core.errors import LabError
from mixlab.core.run_dir import Columns, RunDir
from mixlab.report.series import column, where

Facts = Mapping[str, Any]


@dataclass
class Material:
    """What the run folder holds; what cannot be read is empty and named in `problems`."""

    run: RunDir
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = self.run
        self.config: Facts = self._read(lambda: read_yaml(run.config_path))
        self.environment: Facts = self._read(lambda: run.read_json("environment.json"))
        self.kernels: Facts = self._read(lambda: run.read_json("kernels.json"))
        self.data: Facts = self._read(lambda: run.read_json("data.json"))
        self.summary: Facts = self._read(lambda: run.read_json("summary.json"))
        self.experts: Facts = self._read(lambda: run.read_json("experts.json"))
        self.metrics: Columns = self._read(run.metrics)
        self.evals: Columns = self._read(run.evals)
        self.samples: list[Facts] = self._read(lambda: run.read_jsonl("samples.jsonl"), [])
        self.sittings: list[Facts] = self._read(lambda: run.read_jsonl("sittings.jsonl"), [])

    def _read(self, read: Callable[[], Any], empty: Any = None) -> Any:
        empty = {} if empty is None else empty
        try:
            return read() or empty
        except LabError as error:
            self.problems.append(str(error))
            return empty

    def total(self, name: str, metric: str) -> float | None:
        """A total of the summary; for a run without one, the last row of its log."""
        if number(self.summary.get(name)) is not None:
            return float(self.summary[name])
        known = [value for value in self.metrics.get(metric, []) if number(value) is not None]
        return known[-1] if known else None

    def eval_row(self, name: str) -> Facts:
        """The `final`, `best` or `test` row, from the log if the summary lacks it."""
        if isinstance(self.summary.get(name), Mapping):
            return self.summary[name]
        rows = where(self.evals, split="test" if name == "test" else "validation")
        losses = column(rows, "loss_nats")
        judged = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        if not judged:
            return {}
        chosen = min(judged, key=lambda i: losses[i]) if name == "best" else judged[-1]
        return {key: values[chosen] for key, values in rows.items()}

    @property
    def context(self) -> Facts:
        return self.summary.get("context") or {}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def at(tree: Any, path: str) -> Any:
    """The node at a dotted path; None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
