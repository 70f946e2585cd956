"""The charts that compare arms: the forest of differences, and the fronts of quality and cost."""

from collections.abc import Sequence

from mixlab.report.study.analysis import Front, Standing
from mixlab.report.study.charts import Axis, Band, Chart, Dot, Line, Mark, Rule, Whisker, Zone
from mixlab.report.study.drawings import Brush, Limits, axis_of, cut
from mixlab.report.study.figures import QUANTITIES, percent
from mixlab.report.study.material import known
from mixlab.report.study.palette import INK


def forest(brush: Brush) -> Chart | None:
    """Every arm minus the base arm, paired by seed, with its interval."""
    analysis, metric = brush.analysis, brush.metric
    rows = [s for s in analysis.standings if s.against_base is not None]
    if not rows:
        return None
    n, base = len(rows), analysis.study.base
    marks: list[Mark] = [Rule(x=0.0)]
    size = metric.scale * (analysis.detectable or 0.0)
    if 0 < size < 3 * _reach(brush, rows):
        title = "differences that this study mostly misses"
        marks.append(Zone(INK, title, "", -size, size, "mostly missed"))
    for place, standing in enumerate(rows):
        marks += _forest_row(brush, standing, float(n - place))
    ticks = tuple((float(n - i), cut(s.arm.name, 26)) for i, s in enumerate(rows))
    better = "left" if metric.lower_is_better else "right"
    return Chart(
        "differences", "",
        Axis(f"difference, {metric.short_unit or metric.label}; {better} is better"),
        Axis("", limits=(0.4, n + 0.6), ticks=ticks), marks,
        f"difference of every arm to {base} with its interval", width=500, height=64 + 25 * n,
        letters=1.15, left=7.0 * max(len(text) for _, text in ticks),
    )  # fmt: skip


def _forest_row(brush: Brush, standing: Standing, y: float) -> list[Mark]:
    pair, metric = standing.against_base, brush.metric
    assert pair is not None
    d, look, name = pair.difference, brush.looks[standing.arm.name], standing.arm.name
    mean = metric.scale * d.mean
    title = f"{name} minus {brush.analysis.study.base}: {metric.difference(d.mean)}"
    dot_title, href = title, brush.first_href(name)
    marks: list[Mark] = []
    if d.low is not None and d.high is not None:
        dot_title += f" ({metric.difference(d.low)} to {metric.difference(d.high)})"
        low, high = metric.scale * d.low, metric.scale * d.high
        marks.append(Whisker(look, dot_title, "", mean, y, low, high))
    return [*marks, Dot(look, dot_title, href, mean, y, 5.0, not pair.is_different)]


def _reach(brush: Brush, rows: Sequence[Standing]) -> float:
    """How far from zero the forest reaches."""
    ends = [
        abs(brush.metric.scale * v)
        for s in rows if s.against_base
        for v in (s.against_base.difference.mean, s.against_base.difference.low,
                  s.against_base.difference.high)
        if v is not None and known(v)
    ]  # fmt: skip
    return max(ends)


# --- what it costs ------------------------------------------------------------------------------


_SELF_EVIDENT = ("flops", "seconds", "memory_bytes", "memory_estimate")
"""Costs whose unit is in their name or on the axis."""


def fronts(brush: Brush) -> list[Chart]:
    """The metric against each cost; the line is the best that the cost buys."""
    return [_front(brush, front) for front in brush.analysis.fronts]


def _front(brush: Brush, front: Front) -> Chart:
    metric, quantity = brush.metric, QUANTITIES[front.cost]
    stairs_x, mean = _stairs(front.grid, brush.scaled(front.band.mean))
    low, high = (
        _stairs(front.grid, brush.scaled(side))[1] for side in (front.band.low, front.band.high)
    )
    marks: list[Mark] = [
        Band(INK, "95 % of the bootstrap draws", "", stairs_x, low, high),
        Line(INK, "the best that each cost buys", "", stairs_x, mean, width=1.4),
    ]
    shown = [s for s in brush.analysis.standings if s.arm.name in front.costs and s.summary]
    for standing in shown:
        marks += _front_point(brush, front, standing)
    is_wide = max(front.costs.values()) > 5 * min(front.costs.values())
    label = quantity.label[:1].lower() + quantity.label[1:]
    unit = "" if front.cost in _SELF_EVIDENT else f", {quantity.unit}"
    return Chart(
        f"front-{front.cost}", f"against {label}",
        axis_of(front.cost, f"{label}{unit}", max(front.costs.values()), log=is_wide),
        Axis("", limits=_front_limits(brush, front, shown)), marks,
        f"{metric.label} against {label}", width=345, height=290,
    )  # fmt: skip


def _front_point(brush: Brush, front: Front, standing: Standing) -> list[Mark]:
    name, s, metric = standing.arm.name, standing.summary, brush.metric
    assert s is not None
    look, x, y = brush.looks[name], front.costs[name], metric.scale * s.mean
    title = f"{name}: {metric.value(s.mean)} for {QUANTITIES[front.cost].form(x)}; "
    title += f"on the front in {percent(front.shares[name], 0)} of the draws"
    marks: list[Mark] = []
    if s.low is not None and s.high is not None:
        low, high = metric.scale * s.low, metric.scale * s.high
        marks.append(Whisker(look, title, "", x, y, low, high, "y", 1.2))
    return [*marks, Dot(look, title, brush.first_href(name), x, y, 5.0, name not in front.on_front)]


def _front_limits(brush: Brush, front: Front, shown: Sequence[Standing]) -> Limits:
    """Limits of y; a very wide interval is cut off rather than flattening all others."""
    means = brush.scaled(list(front.means.values()))
    ends = brush.scaled(
        [e for s in shown if s.summary for e in (s.summary.low, s.summary.high) if e is not None]
    )
    room = max(0.12 * (max(means) - min(means)), 0.002 * abs(max(means)))
    low = max(min([*ends, *means]), min(means) - 8 * room) - room
    return low, min(max([*ends, *means]), max(means) + 8 * room) + room


def _stairs(grid: Sequence[float], side: Sequence[float]) -> tuple[list[float], list[float]]:
    """A staircase: from one cost to the next the level stays."""
    x, y = [grid[0]], [side[0]]
    for i in range(1, len(grid)):
        x += [grid[i], grid[i]]
        y += [side[i - 1], side[i]]
    return x, y
