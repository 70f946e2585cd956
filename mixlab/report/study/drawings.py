"""The charts of how the arms trained, and the axes of what was spent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixlab import stats
from mixlab.report.panel import short_count
from mixlab.report.study.analysis import Analysis
from mixlab.report.study.charts import Axis, Band, Chart, Line, Mark
from mixlab.report.study.figures import QUANTITIES
from mixlab.report.study.material import Arm, Run
from mixlab.report.study.metrics import Metric
from mixlab.report.study.palette import Look

Limits = tuple[float, float]


class Brush(NamedTuple):
    """What every chart is drawn with: the figures, their form, each arm's look, and the links."""

    analysis: Analysis
    metric: Metric
    looks: Mapping[str, Look]
    href: Callable[[Run], str]

    def first_href(self, name: str) -> str:
        runs = self.analysis.study.arm(name).finished
        return self.href(runs[0]) if runs else ""

    def scaled(self, values: Sequence[float]) -> list[float]:
        return [self.metric.scale * value for value in values]


# --- as it trained ------------------------------------------------------------------------------


def loss_curves(brush: Brush) -> list[Chart]:
    """The mean curve of every arm against tokens, FLOPs and seconds, on the same y axis.

    Seconds are left out where they say more of the machine's other work than of the arms.
    """
    means = {arm.name: mean_curve(arm) for arm in brush.analysis.study.arms}
    limits = _late_limits(brush, means.values(), 0.3)
    charts = []
    for cost in ("tokens", "flops", "seconds"):
        if cost in brush.analysis.uneven_times:
            continue
        lines = []
        for name, curve in means.items():
            if not curve or not any(curve[cost]):
                continue
            title = f"{name}: {brush.metric.value(curve['value'][-1])} at the end"
            y = brush.scaled(curve["value"])
            lines.append(Line(brush.looks[name], title, brush.first_href(name), curve[cost], y))
        label = _lower_first(QUANTITIES[cost].label)
        most = max((line.x[-1] for line in lines), default=1.0)
        charts.append(
            Chart(
                f"curve-{cost}", f"against {label}",
                axis_of(cost, label, most, log=True, limits=_entry_limits(lines, limits)),
                Axis("", limits=limits), lines,
                f"{brush.metric.label} of every arm against {label}", width=345, height=300,
            )
        )  # fmt: skip
    return charts


def seed_panels(brush: Brush) -> list[Chart]:
    """One small chart per arm with runs: each seed's curve, their mean, and its band."""
    # Arms that have not got that far yet have no panel.
    arms = [arm for arm in brush.analysis.study.arms if any(r.curve.value for r in arm.finished)]
    curves = {arm.name: mean_curve(arm) for arm in arms}
    single = [
        {"tokens": run.curve.tokens, "value": run.curve.value}
        for arm in arms for run in arm.finished if run.curve.value
    ]  # fmt: skip
    limits = _late_limits(brush, [*curves.values(), *single], 0.4)
    panels = []
    start = limits and _entry_limits(
        [Line(brush.looks[arm.name], "", "", run.curve.tokens, brush.scaled(run.curve.value))
         for arm in arms for run in arm.finished], limits,
    )  # fmt: skip
    for number, arm in enumerate(arms):
        look, mean = brush.looks[arm.name], curves[arm.name]
        runs = [run for run in arm.finished if run.curve.value]
        marks: list[Mark] = []
        if mean and len(runs) > 1:
            low, high = brush.scaled(mean["low"]), brush.scaled(mean["high"])
            marks.append(Band(look, "95 % interval of the mean", "", mean["tokens"], low, high))
        for run in runs:
            title = f"seed {run.seed}: {brush.metric.value(run.curve.value[-1])}"
            y = brush.scaled(run.curve.value)
            marks.append(
                Line(look, title, brush.href(run), run.curve.tokens, y, 1.0, 0.75, dashed=False)
            )
        if mean and len(runs) > 1:
            y = brush.scaled(mean["value"])
            marks.append(Line(look, "mean", "", mean["tokens"], y, 2.2, dashed=False))
        panels.append(
            Chart(
                f"seeds-{number}", cut(arm.name, 30), axis_of("tokens", "", 1.0, limits=start),
                Axis("", limits=limits), marks,
                f"curves of the {len(runs)} seeds of {arm.name}", width=232, height=170,
                empty="no finished run",
            )
        )  # fmt: skip
    return panels


def _late_limits(
    brush: Brush, curves: Iterable[Mapping[str, Sequence[float]]], late: float
) -> Limits | None:
    """Limits of y that leave out the steep start, where no arm differs from another.

    What comes after the share `late` of all tokens is in sight.
    """
    curves = [curve for curve in curves if curve and len(curve["value"]) > 1]
    if not curves:
        return None
    start = late * max(curve["tokens"][-1] for curve in curves)
    shown = brush.scaled([
        value for curve in curves
        for tokens, value in zip(curve["tokens"], curve["value"], strict=True)
        if tokens >= start or tokens == curve["tokens"][-1]
    ])  # fmt: skip
    low, high = min(shown), max(shown)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _entry_limits(lines: Sequence[Line], limits: Limits | None) -> Limits | None:
    """Limits of x from where the first curve comes into sight."""
    if limits is None or not lines:
        return None
    seen = [
        x for line in lines for x, y in zip(line.x, line.y, strict=True)
        if x > 0 and limits[0] <= y <= limits[1]
    ]  # fmt: skip
    return (0.8 * min(seen), 1.05 * max(seen)) if seen else None


def mean_curve(arm: Arm) -> dict[str, list[float]]:
    """Mean value with its band, and mean spending, at each evaluation that all seeds have."""
    curves = [run.curve for run in arm.finished if run.curve.value]
    at = sorted(set.intersection(*(set(curve.tokens) for curve in curves))) if curves else []
    if not at:
        return {}
    picked: dict[str, list[list[float]]] = {"value": [], "flops": [], "seconds": []}
    for curve in curves:
        index = {tokens: i for i, tokens in enumerate(curve.tokens)}
        for name, columns in picked.items():
            column = getattr(curve, name)
            columns.append([column[index[tokens]] for tokens in at])
    band = stats.curve_band(picked["value"])
    return {
        "tokens": list(at),
        "value": band.mean,
        "low": band.low,
        "high": band.high,
        "flops": np.mean(picked["flops"], axis=0).tolist(),
        "seconds": np.mean(picked["seconds"], axis=0).tolist(),
    }


# --- axes ---------------------------------------------------------------------------------------


_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_SIZES = ((1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"), (1.0, "B"))


def axis_of(
    cost: str, label: str, most: float, log: bool = False, limits: Limits | None = None
) -> Axis:
    """An axis for something that is spent, with ticks that are round in a unit fit for `most`."""
    units = {
        "memory_bytes": _SIZES,
        "memory_estimate": _SIZES,
        "state_bytes": _SIZES,
        "seconds": _TIMES,
    }.get(cost)
    if units is not None:
        size, unit = next(((s, u) for s, u in units if most >= 2 * s), units[-1])
        return Axis(label, log, limits, lambda x: f"{x / size:.4g} {unit}", unit=size)
    if cost in ("flops", "decode_flops"):
        return Axis(label, log, limits, _flops)
    return Axis(label, log, limits, short_count)


def _flops(x: float) -> str:
    """1e15, 1.5e15; more digits where ticks are close: 1.66e15."""
    mantissa, _, exponent = f"{x:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def cut(name: str, n: int) -> str:
    """A name of at most `n` letters."""
    return name if len(name) <= n else f"{name[: n - 2]}.."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
