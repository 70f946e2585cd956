"""A chart laid out in pixels: paths, shapes and words that `svg` and `raster` write down.

y grows downwards, as on a screen. Colours are names of the palette, so that a page can be light or
dark.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from mixlab.report.study.charts import Axis, Band, Chart, Dot, Line, Note, Rule, Whisker, Zone

TICK, LABEL, TITLE = 11.0, 11.5, 13.0
"""Sizes of letters."""
_LETTER = 0.56
"""Mean width of a letter, in its size."""


class Link(NamedTuple):
    """What a thing belongs to and leads to."""

    series: int = -1
    title: str = ""
    href: str = ""


NO_LINK = Link()


@dataclass(frozen=True)
class Path:
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 0.0
    """Of the line; 0 fills the path instead."""
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    link: Link = NO_LINK


@dataclass(frozen=True)
class Shape:
    x: float
    y: float
    size: float
    colour: str
    marker: str
    hollow: bool = False
    link: Link = NO_LINK


@dataclass(frozen=True)
class Words:
    x: float
    y: float
    text: str
    size: float = TICK
    colour: str = "faint"
    anchor: str = "start"
    bold: bool = False
    turned: bool = False
    link: Link = NO_LINK


@dataclass
class Scene:
    """What a chart came to. Paths are cut off at `frame` (left, top, right, bottom)."""

    name: str
    width: float
    height: float
    frame: tuple[float, float, float, float]
    says: str
    back: list[Path] = field(default_factory=list)
    inside: list[Path] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)


class _Scale:
    """From the units of one axis to pixels."""

    def __init__(self, axis: Axis, values: Iterable[float], low_px: float, high_px: float) -> None:
        known = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
        low, high = axis.limits or _padded(known, axis.log)
        self.axis, self.low, self.high = axis, low, high
        self._a, self._b = (math.log(low), math.log(high)) if axis.log else (low, high)
        self.low_px, self.high_px = low_px, high_px

    def __call__(self, value: float) -> float:
        if self.axis.log:
            value = math.log(value) if value > 0 else self._a
        return self.low_px + (value - self._a) / (self._b - self._a) * (self.high_px - self.low_px)

    def ticks(self, n: int) -> list[tuple[float, str]]:
        if self.axis.ticks is not None:
            return [(v, t) for v, t in self.axis.ticks if self.low <= v <= self.high]
        unit = self.axis.unit
        low, high = self.low / unit, self.high / unit
        values = log_ticks(low, high, n) if self.axis.log else round_ticks(low, high, n)
        return [(unit * v, self.axis.form(unit * v)) for v in values]


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """Round numbers from `low` to `high`, at most about `n`."""
    found = MaxNLocator(n, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [0.0 if abs(v) < slack else float(v) for v in found if low - slack <= v <= high + slack]


def log_ticks(low: float, high: float, n: int) -> list[float]:
    """Round numbers on a logarithmic axis: 1, 2, 5 of each power of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        values = [d * 10.0**p for p in powers for d in digits]
        values = [v for v in values if low * 0.999 <= v <= high * 1.001]
        if len(values) <= n:
            return values
    step = math.ceil(len(values) / n)
    return values[::step]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    if not values:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 1.3
        return low / room, high * room
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


# --- layout -----------------------------------------------------------------------------------


def lay_out(chart: Chart) -> Scene:
    """Scales, ticks and every mark of `chart` in pixels."""
    top = 34.0 if chart.title else 12.0
    bottom = chart.height - (44.0 if chart.x.label else 26.0)
    y = _Scale(chart.y, _values(chart, "y"), bottom, top)
    y_ticks = y.ticks(max(3, int((bottom - top) / 42)))
    longest = max((len(text) for _, text in y_ticks), default=0)
    left = chart.left if chart.left is not None else 10 + longest * TICK * chart.letters * _LETTER
    left += 6.0 if chart.y.label == "" else 18.0
    right = chart.width - 14.0
    x = _Scale(chart.x, _values(chart, "x"), left, right)
    scene = Scene(chart.name, chart.width, chart.height, (left, top, right, bottom), chart.says)
    if chart.title:
        scene.words.append(Words(2, 16, chart.title, TITLE, "ink", bold=True))
    if not chart.marks:
        middle = ((left + right) / 2, (top + bottom) / 2)
        scene.words.append(Words(*middle, chart.empty or "nothing to draw yet", LABEL,
                                 anchor="middle"))  # fmt: skip
        return scene
    _draw_axes(scene, chart, x, y, y_ticks)
    for mark in chart.marks:
        _DRAW[type(mark)](scene, mark, x, y)
    scene.words = [replace(words, size=words.size * chart.letters) for words in scene.words]
    return scene


def _draw_axes(
    scene: Scene, chart: Chart, x: _Scale, y: _Scale, y_ticks: list[tuple[float, str]]
) -> None:
    left, top, right, bottom = scene.frame
    for value, text in y_ticks:
        at = y(value)
        scene.back.append(Path([(left, at), (right, at)], "grid", 1.0))
        scene.words.append(Words(left - 7, at + 4, text, TICK, "faint", "end"))
    end = -math.inf
    x_ticks = x.ticks(max(3, int((right - left) / 62)))
    for value, text in x_ticks:
        at, half = x(value), len(text) * TICK * chart.letters * _LETTER / 2
        scene.back.append(Path([(at, bottom), (at, bottom + 4)], "faint", 1.0))
        if at - half > end + 4:  # labels that would touch are left out
            # A label at the edge moves inwards rather than out of the picture.
            place = min(at, scene.width - half - 1)
            scene.words.append(Words(place, bottom + 16, text, TICK, "faint", "middle"))
            end = place + half
    scene.back.append(Path([(left, bottom), (right, bottom)], "faint", 1.0))
    if chart.x.label:
        scene.words.append(Words((left + right) / 2, bottom + 35, chart.x.label, LABEL, "faint",
                                 "middle"))  # fmt: skip
    if chart.y.label:
        scene.words.append(Words(11, (top + bottom) / 2, chart.y.label, LABEL, "faint", "middle",
                                 turned=True))  # fmt: skip


def _values(chart: Chart, along: str) -> list[float]:
    """Every number that the axis must hold."""
    found: list[float] = []
    for mark in chart.marks:
        if isinstance(mark, Line):
            found += mark.x if along == "x" else mark.y
        elif isinstance(mark, Band):
            found += mark.x if along == "x" else [*mark.low, *mark.high]
        elif isinstance(mark, Whisker):
            found += [mark.low, mark.high] if mark.along == along else [getattr(mark, along)]
        elif isinstance(mark, Dot | Note):
            found.append(getattr(mark, along))
        elif isinstance(mark, Rule):
            found += [] if getattr(mark, along) is None else [getattr(mark, along)]
        elif isinstance(mark, Zone) and along == "x":
            found += [mark.low, mark.high]
    return found


# --- marks ------------------------------------------------------------------------------------


def _link(mark: Line | Band | Dot | Whisker | Rule | Zone | Note) -> Link:
    return Link(mark.look.series, mark.title, mark.href)


def _line(scene: Scene, mark: Line, x: _Scale, y: _Scale) -> None:
    points = [(x(a), y(b)) for a, b in zip(mark.x, mark.y, strict=True) if math.isfinite(b)]
    if not points:
        return
    dash = mark.look.dash if mark.dashed is None else ((5, 3) if mark.dashed else ())
    scene.inside.append(Path(points, mark.look.colour, mark.width, dash, mark.opacity, _link(mark)))


def _band(scene: Scene, mark: Band, x: _Scale, y: _Scale) -> None:
    known = [
        (x(a), y(b), y(c))
        for a, b, c in zip(mark.x, mark.low, mark.high, strict=True)
        if math.isfinite(b) and math.isfinite(c)
    ]
    outline = [(a, b) for a, b, _ in known] + [(a, c) for a, _, c in reversed(known)]
    if outline:
        scene.inside.append(Path(outline, mark.look.colour, 0, (), mark.opacity, _link(mark)))


def _dot(scene: Scene, mark: Dot, x: _Scale, y: _Scale) -> None:
    if math.isfinite(mark.x) and math.isfinite(mark.y):
        scene.shapes.append(
            Shape(x(mark.x), y(mark.y), mark.size, mark.look.colour, mark.look.marker,
                  mark.hollow, _link(mark))
        )  # fmt: skip


def _whisker(scene: Scene, mark: Whisker, x: _Scale, y: _Scale) -> None:
    if mark.along == "x":
        ends = [(x(mark.low), y(mark.y)), (x(mark.high), y(mark.y))]
    else:
        ends = [(x(mark.x), y(mark.low)), (x(mark.x), y(mark.high))]
    scene.inside.append(Path(ends, mark.look.colour, mark.width, (), 0.85, _link(mark)))


def _rule(scene: Scene, mark: Rule, x: _Scale, y: _Scale) -> None:
    left, top, right, bottom = scene.frame
    if mark.x is not None:
        ends = [(x(mark.x), top), (x(mark.x), bottom)]
        # Near the right edge the word stands on the other side of its line.
        is_late = ends[0][0] > right - 8 - len(mark.text) * TICK * _LETTER
        anchor, shift = ("end", -4) if is_late else ("start", 4)
        words = Words(ends[0][0] + shift, top + 10, mark.text, TICK, "faint", anchor)
    else:
        assert mark.y is not None
        ends = [(left, y(mark.y)), (right, y(mark.y))]
        words = Words(right - 2, ends[0][1] - 4, mark.text, TICK, "faint", "end")
    scene.back.append(Path(ends, "faint", 1.0, (4, 3), 1.0, _link(mark)))
    if mark.text:
        scene.words.append(words)


def _zone(scene: Scene, mark: Zone, x: _Scale, y: _Scale) -> None:
    _, top, _, bottom = scene.frame
    low, high = x(mark.low), x(mark.high)
    corners = [(low, top), (high, top), (high, bottom), (low, bottom)]
    scene.back.insert(0, Path(corners, mark.look.colour, 0, (), 0.07, _link(mark)))
    if mark.text:
        scene.words.append(Words((low + high) / 2, top - 5, mark.text, TICK, "faint", "middle"))


def _note(scene: Scene, mark: Note, x: _Scale, y: _Scale) -> None:
    place = (x(mark.x) + mark.dx, y(mark.y) + mark.dy + 4)
    scene.words.append(
        Words(*place, mark.text, TICK, mark.look.colour, mark.anchor, link=_link(mark))
    )


_DRAW = {
    Line: _line, Band: _band, Dot: _dot, Whisker: _whisker, Rule: _rule, Zone: _zone, Note: _note,
}  # fmt: skip
