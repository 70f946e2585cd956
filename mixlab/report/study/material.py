"""What a study is to its report: the design, the arms, and the figures of every run.

These are plain records; `folder` reads them from a study folder. A figure that is not known is
absent, never guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """The validation metric of one run as it trained, with what had been spent up to there."""

    value: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: str
    seed: int
    lr: float | None
    status: str
    """finished, failed, running, waiting, or dropped by the screening."""
    folder: str
    """The run folder, relative to the study folder; empty before it exists."""
    is_tuning: bool = False
    """Made to find the arm's learning rate, and not part of the comparison."""
    results: Figures = field(default_factory=dict)
    """The final figures on validation text: loss_nats, bits_per_byte, accuracy, ..."""
    realised: Figures = field(default_factory=dict)
    """What it took: tokens, steps, flops, seconds, params, ..."""
    curve: Curve = Curve()
    error: str = ""
    error_kind: str = ""
    """out of memory, diverged, bug, refused or killed."""
    attempts: int = 1
    test: Figures = field(default_factory=dict)
    """The final figures on test text."""
    unigram: float | None = None
    """Entropy of the token frequencies in nats: what a model reaches that ignores the context."""
    documents: str = ""
    """File with the losses by document, relative to the study folder."""
    address: str = ""
    """What the study calls the run."""


@dataclass(frozen=True)
class Arm:
    """One variant."""

    name: str
    about: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key -> value, against the base recipe."""
    runs: tuple[Run, ...] = ()
    tuning: tuple[Run, ...] = ()
    lr: float | None = None
    """The learning rate that its runs use."""
    lr_status: str = ""
    """interior, edge, failed or unfinished; empty without tuning."""
    why_not: str = ""
    """Why the arm is not ranked; empty for one that is."""
    costs: Figures = field(default_factory=dict)
    """state_bytes, decode_flops and the like, which are the same for every seed."""
    matching: str = ""
    """What was chosen so that the arm matches: "d_ff 704 -> 680", "212 steps"."""

    @property
    def is_tuned(self) -> bool:
        """Whether its search for a learning rate came to an end."""
        return self.lr_status in ("interior", "edge")

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def failed(self) -> list[Run]:
        return [run for run in (*self.runs, *self.tuning) if run.status == "failed"]

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the final metric of the finished runs that have it."""
        return {
            run.seed: run.results[metric] for run in self.finished if known(run.results.get(metric))
        }

    def spent(self, quantity: str, runs: tuple[Run, ...] | None = None) -> float | None:
        """The sum over runs that got anywhere; None if none says."""
        chosen = self.runs if runs is None else runs
        found = [r.realised[quantity] for r in chosen if known(r.realised.get(quantity))]
        return math.fsum(found) if found else None

    def mean(self, quantity: str) -> float | None:
        """The mean of a quantity over the finished runs, or the arm's own cost of that name."""
        if known(self.costs.get(quantity)):
            return float(self.costs[quantity])
        found = [r.realised[quantity] for r in self.finished if known(r.realised.get(quantity))]
        return math.fsum(found) / len(found) if found else None


@dataclass(frozen=True)
class Match:
    """One quantity that all arms were to have alike."""

    quantity: str
    target: float | None = None
    tolerance: float = 0.01

    @property
    def label(self) -> str:
        """Its name in a sentence: active parameters, FLOPs."""
        return {"flops": "FLOPs"}.get(
            self.quantity, self.quantity.replace("params", "parameters").replace("_", " ")
        )


@dataclass(frozen=True)
class Study:
    """Everything that the report is made from."""

    name: str
    about: str
    base: str
    """The arm that the others are compared with."""
    arms: tuple[Arm, ...]
    metric: str = "loss_nats"
    lower_is_better: bool = True
    alpha: float = 0.05
    seeds: tuple[int, ...] = ()
    """The seeds that each arm is to have."""
    effect: float | None = None
    """The difference that the study was made to find, in the metric's unit."""
    match: tuple[Match, ...] = ()
    screening: str = ""
    """How arms were dropped before the last seeds; empty without screening."""
    screening_rows: tuple[Mapping[str, Any], ...] = ()
    is_as_published: bool = False
    """Repeats a published design on purpose, with its faults."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the checklist names: data, hardware, commit, times, ..."""
    problems: tuple[str, ...] = ()
    """Files that could not be read, in words."""
    bytes_per_token: float | None = None
    is_smoke: bool = False
    set_aside: tuple[Mapping[str, Any], ...] = ()
    """Results that are kept and not counted: of an arm as it was before it was edited."""

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in (*arm.tuning, *arm.runs)]


def known(value: Any) -> bool:
    """Whether `value` is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
