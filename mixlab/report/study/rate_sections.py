"""Learning rates: what tuning found and took, and what a grid over rates shows."""

from mixlab.core import units
from mixlab.report.study.figures import percent, plural, rate
from mixlab.report.study.html import Column, Html, join, link, table, tag
from mixlab.report.study.material import Arm
from mixlab.report.study.rate_drawings import RATE, RateGrid, rate_curve, rate_grids
from mixlab.report.study.view import View, paragraph, section


def rates(view: View) -> Html:
    """The U-curves, and what finding them took."""
    tuned = [arm for arm in view.study.arms if arm.tuning]
    if not tuned:
        return Html("")
    edges = [arm.name for arm in tuned if arm.lr_status == "edge"]
    text = (
        "Each arm's rate was searched on a grid of factors of 2 until the best lay inside, then "
        "refined once by a factor of 1.41. The large mark is the rate that was used."
    )
    if edges:
        text += (
            " A hollow mark lies at the edge of what was tried: a better rate may lie beyond, so "
            "the arm is not ranked."
        )
    return section(
        "rates", "Learning rates", paragraph(f"{text} Vertical axis: {view.metric.axis}."),
        view.charts("rates", "many"), tag("h3", "What tuning took"), _tuning_table(view, tuned),
    )  # fmt: skip


def _tuning_table(view: View, tuned: list[Arm]) -> Html:
    columns = [
        Column("arm"),
        Column("rates tried", True),
        Column("runs", True),
        Column("FLOPs", True),
        Column("time", True),
        Column("share of the arm's compute", True),
        Column("best rate", True),
        Column(f"at half and twice it, {view.metric.short_unit or 'change'}", True,
               "how much is lost by a rate that is wrong by a factor of 2"),
    ]  # fmt: skip
    rows: list[list[Html | str]] = []
    for arm in tuned:
        flops, own = arm.spent("flops", arm.tuning), arm.spent("flops")
        share = flops / (flops + own) if flops and own else None
        tried = [run for run in arm.tuning if run.status in ("finished", "failed")]
        lrs = {run.lr for run in tried}
        note = "" if arm.lr_status == "interior" else f" ({arm.lr_status})"
        rows.append([
            view.arm_link(arm), str(len(lrs)), view.to_runs(arm, str(len(tried))),
            view.to_runs(arm, units.flops(flops)),
            view.to_runs(arm, units.duration(arm.spent("seconds", arm.tuning))),
            view.to_runs(arm, percent(share, 0)),
            view.to_runs(arm, f"{rate(arm.lr)}{note}" if arm.is_tuned else arm.lr_status),
            _sensitivity(view, arm),
        ])  # fmt: skip
    return table(columns, rows)


def _sensitivity(view: View, arm: Arm) -> Html | str:
    """The loss at half and at twice the best rate, minus that at the best."""
    curve = rate_curve(arm, view.study.metric)
    if not arm.lr or not curve or not arm.is_tuned:
        return ""
    at = {lr: (value, run) for lr, value, run in curve}
    best = next((v for lr, (v, _) in at.items() if abs(lr / arm.lr - 1) < 1e-6), None)
    if best is None:
        return ""
    parts: list[Html | str] = []
    for factor in (0.5, 2.0):
        near = next(
            ((v, run) for lr, (v, run) in at.items() if abs(lr / arm.lr / factor - 1) < 0.02), None
        )
        if near is None:
            parts.append("not tried")
        else:
            parts.append(link(view.metric.difference(near[0] - best), view.href(near[1])))
    return tag("span", join(parts, ", "))


def tuning_note(view: View) -> str:
    """One line for the checklist."""
    tuned = [arm for arm in view.study.arms if arm.tuning]
    if not tuned:
        return "no arm was tuned: the rates are those of the study file"
    runs = sum(len(arm.tuning) for arm in tuned)
    flops = sum(arm.spent("flops", arm.tuning) or 0.0 for arm in tuned)
    seconds = sum(arm.spent("seconds", arm.tuning) or 0.0 for arm in tuned)
    seeds = sorted({run.seed for arm in tuned for run in arm.tuning})
    used = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    counts = sorted({len(arm.tuning) for arm in tuned})
    per_arm = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return (
        f"{plural(runs, 'run')} in all ({per_arm} per arm), with {used}, "
        f"{units.flops(flops)} FLOPs, "
        f'{units.duration(seconds)}; see the table under "Learning rates"'
    )


# --- a grid over rates ----------------------------------------------------------------------------


def grid(view: View) -> Html:
    """The curve over the rates of a grid; nothing for a study without one."""
    grids = rate_grids(view.study, view.analysis.standings)
    if not grids:
        return Html("")
    text = (
        "The mean over seeds at every rate of the grid, with its interval. The large mark is the "
        "best of its panel. Where it is hollow, it lies at the edge of the grid: a better rate "
        f"may lie beyond. Vertical axis: {view.metric.axis}."
    )
    columns = [
        Column("arms"),
        Column("best rate", True, is_wide=True),
        Column(view.metric.unit or view.metric.label, True),
        Column("rates that cannot be told from it", is_wide=True),
    ]
    rows = [_grid_row(view, one) for one in grids]
    return section(
        "rates", "Learning rates", paragraph(text), view.charts("rates", "three"),
        table(columns, rows),
    )  # fmt: skip


def _grid_row(view: View, grid: RateGrid) -> list[Html | str]:
    best, comparison = grid.best(view.metric.lower_is_better), view.analysis.comparison
    compared = {arm.name for arm in comparison.arms} if comparison else set()
    level: list[Html | str] = []
    for other in grid.standings:
        names = best.arm.name, other.arm.name
        if comparison is None or other is best or not compared.issuperset(names):
            continue
        if not comparison.pair(*names).is_different:
            level.append(view.to_runs(other.arm, rate(other.arm.changes[RATE])))
    edge = " (edge of the grid)" if grid.is_edge(best) else ""
    return [
        grid.title or "all",
        view.to_runs(best.arm, f"{rate(best.arm.changes[RATE])}{edge}"),
        view.mean_link(best),
        tag("span", join(level, ", ") or "none"),
    ]
