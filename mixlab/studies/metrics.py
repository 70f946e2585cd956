"""The figures that arms can be ranked by, and where a finished run keeps them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mixlab.core.errors import ConfigError
from mixlab.core.nearest import did_you_mean


class Metric(NamedTuple):
    """One figure of a finished run."""

    name: str
    lower_is_better: bool
    unit: str


_PLACES = {
    "validation": ("final",),
    "test": ("test",),
    "early_exit": ("refinement", "early_exit"),
}
_LANGUAGE = {
    "loss_nats": (True, "nats per token"),
    "bits_per_byte": (True, "bits per byte"),
    "perplexity": (True, ""),
    "accuracy": (False, "share of tokens"),
}
_PUZZLES = {
    "loss_nats": (True, "nats"),
    "exact_accuracy": (False, "share of puzzles"),
    "blank_accuracy": (False, "share of blanks"),
    "valid_accuracy": (False, "share of puzzles"),
}
_EXIT = {
    "exact_accuracy": (False, "share of puzzles"),
    "valid_accuracy": (False, "share of puzzles"),
    "reasoning_steps": (True, "segments"),
}
_FIGURES = {
    "language_model": {"validation": _LANGUAGE, "test": _LANGUAGE},
    "refine": {"validation": _PUZZLES, "test": _PUZZLES, "early_exit": _EXIT},
}


def metric_names(kind: str) -> list[str]:
    """The metrics that a finished run of this kind has."""
    return [f"{place}.{name}" for place, names in _FIGURES[kind].items() for name in names]


def find_metric(name: str, kinds: set[str]) -> Metric:
    """The metric called `name`, which runs of all `kinds` must have.

    Raises:
        ConfigError: they do not; names those that there are.
    """
    known = [m for m in metric_names(sorted(kinds)[0]) if all(m in metric_names(k) for k in kinds)]
    if name not in known:
        raise ConfigError(
            "metric", name, f"a figure that every run of the study has: {', '.join(known)}",
            did_you_mean(name, known).strip(),
        )  # fmt: skip
    place, _, figure = name.partition(".")
    lower, unit = _FIGURES[sorted(kinds)[0]][place][figure]
    return Metric(name, lower, unit)


def metric_value(name: str, summary: Mapping[str, Any]) -> float | None:
    """The figure in a run's summary; None if the run does not have it."""
    place, _, figure = name.partition(".")
    node: Any = summary
    for key in (*_PLACES.get(place, ("",)), figure):
        node = node.get(key) if isinstance(node, Mapping) else None
    is_number = isinstance(node, int | float) and not isinstance(node, bool)
    return float(node) if is_number and math.isfinite(node) else None
