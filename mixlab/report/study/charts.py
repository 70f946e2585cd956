"""A chart as data: marks on two axes, in the units of the data.

What a chart says is decided here and in `drawings`; where its lines fall is the matter of `scene`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixlab.report.study.palette import INK, Look

Numbers = Sequence[float]


def plain_number(value: float) -> str:
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """One axis; limits are those of the data where they are None."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    form: Callable[[float], str] = plain_number
    ticks: tuple[tuple[float, str], ...] | None = None
    """Places and texts; None: round numbers."""
    unit: float = 1.0
    """Ticks are round in this unit: 60 for seconds shown in minutes, 1024 for KiB."""


@dataclass(frozen=True)
class Mark:
    """One thing drawn. `title` is shown under the pointer, `href` is where a click leads."""

    look: Look = INK
    title: str = ""
    href: str = ""


@dataclass(frozen=True)
class Line(Mark):
    x: Numbers = ()
    y: Numbers = ()
    width: float = 1.8
    opacity: float = 1.0
    dashed: bool | None = None
    """None: as the arm's look says."""


@dataclass(frozen=True)
class Band(Mark):
    x: Numbers = ()
    low: Numbers = ()
    high: Numbers = ()
    opacity: float = 0.18


@dataclass(frozen=True)
class Dot(Mark):
    x: float = 0.0
    y: float = 0.0
    size: float = 4.0
    hollow: bool = False


@dataclass(frozen=True)
class Whisker(Mark):
    """An interval along x or along y through a point."""

    x: float = 0.0
    y: float = 0.0
    low: float = 0.0
    high: float = 0.0
    along: str = "x"
    width: float = 1.8


@dataclass(frozen=True)
class Rule(Mark):
    """A line through the whole chart, at an x or at a y, with a word on it."""

    x: float | None = None
    y: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Zone(Mark):
    """A shaded stretch of the x axis."""

    low: float = 0.0
    high: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Note(Mark):
    """A word beside a point."""

    x: float = 0.0
    y: float = 0.0
    text: str = ""
    anchor: str = "start"
    dx: float = 6.0
    dy: float = 0.0


@dataclass(frozen=True)
class Chart:
    """Marks on axes. `name` is part of ids; `says` is read to those who cannot see."""

    name: str
    title: str
    x: Axis
    y: Axis
    marks: Sequence[Any] = field(default_factory=tuple)
    says: str = ""
    width: float = 440.0
    height: float = 300.0
    empty: str = ""
    """What to say in place of a chart without marks."""
    left: float | None = None
    """Room for the labels of the y axis; None: as much as they need."""
    letters: float = 1.0
    """Larger letters for a chart that a phone shrinks."""
