"""The charts of learning rates: the U-curve of a tuned arm, and that of a grid over rates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixlab.report.study.analysis import Standing
from mixlab.report.study.charts import Axis, Chart, Dot, Line, Mark, Rule, Whisker
from mixlab.report.study.drawings import Brush, Limits, cut
from mixlab.report.study.figures import rate
from mixlab.report.study.material import Arm, Run, Study, known
from mixlab.report.study.palette import INK

RATE = "train.optimizer.lr"


def rate_panels(brush: Brush) -> list[Chart]:
    """The U-curve of every tuned arm. An optimum at the edge is drawn hollow."""
    study = brush.analysis.study
    tuned = [arm for arm in study.arms if rate_curve(arm, study.metric)]
    found = {arm.name: rate_curve(arm, study.metric) for arm in tuned}
    every = brush.scaled([v for curve in found.values() for _, v, _ in curve])
    limits = _near_best(every, brush.metric.lower_is_better)
    tried = [run.lr for arm in tuned for run in arm.tuning if run.lr and known(run.lr)]
    # One axis for all: which arm wants the higher rate is read from panel to panel.
    span = (min(tried) / 1.15, max(tried) * 1.15) if tried else None
    return [
        Chart(
            f"rates-{number}", cut(arm.name, 24) + (" (edge)" if arm.lr_status == "edge" else ""),
            Axis("learning rate", True, span, form=rate), Axis("", limits=limits),
            _rate_marks(brush, arm, found[arm.name], limits),
            f"{brush.metric.label} of {arm.name} against the learning rate", width=232, height=190,
            empty="no finished run",
        )
        for number, arm in enumerate(tuned)
    ]  # fmt: skip


def _rate_marks(
    brush: Brush, arm: Arm, curve: list[tuple[float, float, Run]], limits: Limits | None
) -> list[Mark]:
    look, metric = brush.looks[arm.name], brush.metric
    rim = None if limits is None else limits[1] if metric.lower_is_better else limits[0]
    marks: list[Mark] = []
    heights = brush.scaled([v for _, v, _ in curve])
    if limits is not None:  # a point far away stands at the rim
        heights = [min(max(y, limits[0]), limits[1]) for y in heights]
    if curve:
        marks.append(Line(look, "", "", [lr for lr, _, _ in curve], heights))
    for (lr, value, run), height in zip(curve, heights, strict=True):
        is_best = arm.is_tuned and arm.lr is not None and abs(lr / arm.lr - 1) < 1e-6
        is_edge = is_best and arm.lr_status == "edge"
        title = f"{arm.name} at {rate(lr)}: {metric.value(value)}"
        title += ", best, but at the edge" if is_edge else ", best" if is_best else ""
        size = 6.0 if is_best else 3.2
        marks.append(Dot(look, title, brush.href(run), lr, height, size, is_edge))
        if is_best:
            marks.append(Rule(x=lr, text=rate(lr)))
    if rim is not None:
        for run in arm.tuning:
            if run.status == "failed" and run.lr:
                title = f"{arm.name} at {rate(run.lr)}: {run.error_kind or 'failed'}"
                marks.append(Dot(look._replace(marker="cross"), title, "", run.lr, rim, 4.5))
    return marks


def rate_curve(arm: Arm, metric: str) -> list[tuple[float, float, Run]]:
    """(rate, mean metric over the tuning seeds, one of its runs) by rising rate."""
    by_rate: dict[float, list[Run]] = {}
    for run in arm.tuning:
        if run.lr is not None and known(run.lr) and known(run.results.get(metric)):
            by_rate.setdefault(float(run.lr), []).append(run)
    return [
        (lr, float(np.mean([run.results[metric] for run in runs])), runs[0])
        for lr, runs in sorted(by_rate.items())
    ]


def _near_best(values: list[float], lower_is_better: bool) -> Limits | None:
    """Limits around the good half of the values: one diverged rate must not flatten the rest.

    They hold everything where the worst is at most five times as far from the best as the median.
    """
    values = [v for v in values if known(v)]
    if not values:
        return None
    best, worst = (min, max) if lower_is_better else (max, min)
    middle = float(np.median(values))
    near, far = (best(values) + times * (middle - best(values)) for times in (3, 5))
    end = worst(values)
    if middle != best(values) and best(end, far) == far:
        end = near
    low, high = sorted((best(values), end))
    room = 0.08 * (high - low) or 0.02 * abs(high) or 0.1
    return low - room, high + room


# --- a grid over rates ----------------------------------------------------------------------------


class RateGrid(NamedTuple):
    """Arms that differ in nothing but their learning rate."""

    title: str
    """What their names share; empty for a study of rates alone."""
    standings: list[Standing]
    """By rising rate, at least two; all have a finished run."""

    def best(self, lower_is_better: bool) -> Standing:
        choose = min if lower_is_better else max
        return choose(self.standings, key=_mean)

    def is_edge(self, standing: Standing) -> bool:
        return standing in (self.standings[0], self.standings[-1])


def _mean(standing: Standing) -> float:
    assert standing.summary is not None
    return standing.summary.mean


def rate_grids(study: Study, standings: Sequence[Standing]) -> list[RateGrid]:
    """The arms of a grid over rates, one group for each setting of everything else."""
    groups: dict[str, list[Standing]] = {}
    order = {arm.name: place for place, arm in enumerate(study.arms)}
    for standing in sorted(standings, key=lambda s: order[s.arm.name]):
        arm = standing.arm
        if standing.summary is not None and known(arm.changes.get(RATE)) and not arm.tuning:
            groups.setdefault(_others(arm.changes), []).append(standing)
    return [
        RateGrid(_shared_name(group), sorted(group, key=lambda s: s.arm.changes[RATE]))
        for group in groups.values()
        if len({s.arm.changes[RATE] for s in group}) > 1
    ]


def _others(changes: Mapping[str, Any]) -> str:
    return repr(sorted((key, repr(value)) for key, value in changes.items() if key != RATE))


def _shared_name(group: Sequence[Standing]) -> str:
    """The parts of the arms' names, between commas, that all of them have."""
    names = [standing.arm.name.split(",") for standing in group]
    return ",".join(part for part in names[0] if all(part in other for other in names))


def grid_panels(brush: Brush) -> list[Chart]:
    """The mean of every arm of a grid over its rate, with its interval; a panel per group."""
    analysis, lower = brush.analysis, brush.metric.lower_is_better
    grids = rate_grids(analysis.study, analysis.standings)
    every = [s for grid in grids for s in grid.standings]
    ends = [e for s in every if s.summary for e in (s.summary.low, s.summary.high) if known(e)]
    limits = _near_best(brush.scaled([*map(_mean, every), *ends]), lower)
    rates = [s.arm.changes[RATE] for s in every]
    return [
        Chart(
            f"rates-{number}", cut(grid.title or brush.metric.label, 30),
            Axis("learning rate", True, (min(rates) / 1.2, max(rates) * 1.2), form=rate),
            Axis("", limits=limits), _grid_marks(brush, grid, limits),
            f"{brush.metric.label} of {grid.title or 'every arm'} against the learning rate",
            width=300, height=210,
        )
        for number, grid in enumerate(grids)
    ]  # fmt: skip


def _grid_marks(brush: Brush, grid: RateGrid, limits: Limits | None) -> list[Mark]:
    metric = brush.metric
    best = grid.best(metric.lower_is_better)
    heights = brush.scaled([_mean(s) for s in grid.standings])
    if limits is not None:
        heights = [min(max(y, limits[0]), limits[1]) for y in heights]
    lrs = [s.arm.changes[RATE] for s in grid.standings]
    marks: list[Mark] = [Line(INK, "", "", lrs, heights, 1.2, 0.6)]
    for standing, lr, height in zip(grid.standings, lrs, heights, strict=True):
        look, summary = brush.looks[standing.arm.name], standing.summary
        assert summary is not None
        title = f"{standing.arm.name}: {metric.value(summary.mean)}"
        is_edge = standing is best and grid.is_edge(standing)
        title += ", best, but at the edge" if is_edge else ", best" if standing is best else ""
        if summary.low is not None and summary.high is not None:
            low, high = brush.scaled([summary.low, summary.high])
            marks.append(Whisker(look, title, "", lr, height, low, high, "y", 1.4))
        size = 6.0 if standing is best else 3.6
        href = brush.first_href(standing.arm.name)
        marks.append(Dot(look, title, href, lr, height, size, is_edge))
        if standing is best:
            marks.append(Rule(x=lr, text=rate(lr)))
    return marks
