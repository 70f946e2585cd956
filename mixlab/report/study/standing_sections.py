"""The first parts of the page: the findings, the leaderboard, the differences to the base arm."""

from mixlab.core import units
from mixlab.report.study.analysis import Standing
from mixlab.report.study.figures import DASH, p_value, plural, rate, signed
from mixlab.report.study.html import Column, Html, join, table, tag
from mixlab.report.study.scene import Path, Scene, Shape
from mixlab.report.study.svg import write_svg
from mixlab.report.study.view import View, paragraph, section
from mixlab.report.study.words import Sentence, findings, progress


def opening(view: View) -> Html:
    """Name, question, what it rests on, and the answer."""
    study = view.study
    sentences = findings(view.analysis, view.metric)
    banners = [progress(view.analysis), *(s.text for s in sentences if s.kind == "warning")]
    banners += [f"Could not be read: {problem}" for problem in study.problems[:3]]
    shown = [s for s in sentences if s.kind != "warning"]
    return tag(
        "header",
        tag("h1", study.name),
        paragraph(study.about, class_="about") if study.about else None,
        paragraph(_facts(view), class_="facts"),
        *(paragraph(text, class_="banner") for text in banners if text),
        tag("div", *_sentences(view, shown), class_="findings"),
    )


def _sentences(view: View, sentences: list[Sentence]) -> list[Html]:
    first = next((s for s in sentences if s.kind == "answer"), None)
    return [
        paragraph(view.with_links(s), class_=f"{s.kind} first" if s is first else s.kind)
        for s in sentences
    ]


def _facts(view: View) -> Html:
    study = view.study
    matched = [match.label for match in study.match]
    parts = [
        tag("b", plural(len(study.arms), "arm")),
        plural(len(study.seeds), "seed"),
        f"equal {' and '.join(matched)}" if matched else "nothing matched",
        "learning rate tuned per arm"
        if any(arm.tuning for arm in study.arms)
        else "rates as given",
        f"judged by {view.metric.axis} ({view.metric.better})",
        study.facts.get("cost", ""),
    ]
    return join(parts, "  \u00b7  ")


# --- leaderboard ---------------------------------------------------------------------------------


def leaderboard(view: View) -> Html:
    """Every arm with its mean, interval and tie group."""
    standings = view.analysis.standings
    confidence = f"{100 * (1 - view.study.alpha):g} %"
    columns = [
        Column("arm"),
        Column(view.metric.unit or view.metric.label, True, view.metric.axis),
        Column(f"{confidence} interval", title="t interval of the mean over seeds", is_wide=True),
        Column("tie group", title="arms that share a letter cannot be told apart"),
        Column(f"against {view.study.base}", True, "difference of the means, paired by seed"),
        Column("p", True, "corrected for all comparisons by Holm's method"),
        Column("rate", True, "learning rate"),
        Column("runs", title="the run of each seed", is_wide=True),
    ]
    limits = _strip_limits(view)
    rows = [_row(view, standing, limits) for standing in standings]
    return section(
        "leaderboard",
        "Leaderboard",
        paragraph(_how_to_read(view)),
        table(columns, rows, "lead"),
    )


def _how_to_read(view: View) -> str:
    comparison = view.analysis.comparison
    if comparison is None:
        return "No arm is ranked, for the reasons above; the figures are shown all the same."
    if len(comparison.arms) == 1:
        return "One arm alone has no rank; the figures are shown all the same."
    if comparison.n_tested == 0:
        return "Without a second seed there is no interval, no test and no rank."
    return (
        "The rank is one more than the number of arms that are better by more than noise, so arms "
        "that cannot be told apart may share it. Two arms without a common letter differ."
    )


def _row(view: View, standing: Standing, limits: tuple[float, float] | None) -> list[Html | str]:
    arm, summary, pair = standing.arm, standing.summary, standing.against_base
    rank = str(standing.rank) if standing.rank is not None else DASH
    name = join([tag("span", rank, class_="rank"), view.arm_link(arm)])
    interval = _strip(view, standing, limits) if limits and summary else Html("")
    difference: Html | str = ""
    if arm.name == view.study.base:
        difference = tag("span", "base arm", class_="quiet")
    elif pair is not None:
        difference = _difference(view, standing)
    reason = "no finished run" if summary is None else "not ranked" if arm.why_not else ""
    return [
        name,
        view.mean_link(standing) if summary else tag("span", units.ABSENT, class_="quiet"),
        interval,
        tag(
            "span",
            standing.letters or reason,
            class_="letters" if standing.letters else "quiet small",
            title=arm.why_not or None,
        ),
        difference,
        view.to_runs(arm, p_value(pair.p_holm) if pair and pair.p_holm is not None else ""),
        view.to_runs(arm, rate(arm.lr) if arm.lr else ""),
        tag("span", view.seeds(arm), class_="runs") if arm.finished else "",
    ]


def _difference(view: View, standing: Standing) -> Html:
    pair = standing.against_base
    assert pair is not None
    text = view.to_runs(standing.arm, view.metric.difference(pair.difference.mean))
    if not pair.is_different:
        return tag("span", text, class_="quiet")
    better = (pair.difference.mean < 0) == view.metric.lower_is_better
    return tag("span", text, class_="good" if better else "bad")


def _strip_limits(view: View) -> tuple[float, float] | None:
    """Common limits of the little intervals; a very wide one is cut off."""
    summaries = [s.summary for s in view.analysis.standings if s.summary]
    if not summaries:
        return None
    means = [s.mean for s in summaries]
    ends = [end for s in summaries for end in (s.low, s.high) if end is not None]
    spread = max(means) - min(means)
    widths = sorted(s.high - s.low for s in summaries if s.low is not None and s.high is not None)
    room = max(spread * 0.6, widths[len(widths) // 2] * 1.1 if widths else 0.0) or 1.0
    low = max(min([*ends, *means]), min(means) - room)
    high = min(max([*ends, *means]), max(means) + room)
    edge = 0.03 * (high - low) or 0.5
    return low - edge, high + edge


def _strip(view: View, standing: Standing, limits: tuple[float, float]) -> Html:
    """The interval of one arm on a line that all rows share."""
    summary = standing.summary
    assert summary is not None
    width, height, middle = 190.0, 18.0, 9.0

    def at(value: float) -> float:
        share = (value - limits[0]) / (limits[1] - limits[0])
        return 5 + min(max(share, 0.0), 1.0) * (width - 10)

    look = view.looks[standing.arm.name]
    says = view.metric.value(summary.mean)
    scene = Scene(f"strip-{look.series}", width, height, (0, 0, width, height), says)
    scene.back.append(Path([(5, middle), (width - 5, middle)], "grid", 1.0))
    base = next(
        (s.summary.mean for s in view.analysis.standings
         if s.arm.name == view.study.base and s.summary), None,
    )  # fmt: skip
    if base is not None:
        scene.back.append(Path([(at(base), 0), (at(base), height)], "grid", 1.5))
    if summary.low is not None and summary.high is not None:
        says = f"{says} ({view.metric.value(summary.low)} to {view.metric.value(summary.high)})"
        ends = [(at(summary.low), middle), (at(summary.high), middle)]
        scene.inside.append(Path(ends, look.colour, 3.0, (), 0.55))
    scene.says = says
    scene.shapes.append(
        Shape(at(summary.mean), middle, 4.2, look.colour, look.marker, standing.rank is None)
    )
    return Html(write_svg(scene).replace("<svg ", '<svg class="strip" ', 1))


# --- differences ---------------------------------------------------------------------------------


def differences(view: View) -> Html:
    """The forest plot and the same as figures, in every unit."""
    study, metric = view.study, view.metric
    rows = [s for s in view.analysis.standings if s.against_base is not None]
    if not rows:
        return Html("")
    in_nats = study.metric == "loss_nats"
    columns = [
        Column("arm"),
        Column(metric.short_unit or metric.label, True),
        Column("interval", True, is_wide=True),
        *([Column("bits per byte", True)] if in_nats and study.bytes_per_token else []),
        *([Column("loss reduction", True, "(base - arm) / base; more is better")]
          if in_nats else []),
        Column("p", True, "corrected for all comparisons by Holm's method"),
        Column("seeds", True, "seeds that both arms have"),
    ]  # fmt: skip
    cells = [_difference_row(view, standing, in_nats) for standing in rows]
    methods = sorted({s.against_base.difference.method for s in rows if s.against_base})
    detectable = view.analysis.detectable
    zone = (
        f" In the shaded stretch, {metric.size(detectable)} to either side, true differences are "
        "mostly missed."
        if detectable
        else ""
    )
    text = (
        f"Each arm minus {study.base}, by the seeds that both have ({', '.join(methods)}). A "
        "filled mark differs after correction for all comparisons; a hollow one may be noise. "
        f"Intervals are not corrected.{zone}"
    )
    return section(
        "differences", f"Difference to {study.base}", paragraph(text),
        view.charts("differences", "one"), table(columns, cells),
    )  # fmt: skip


def _difference_row(view: View, standing: Standing, in_nats: bool) -> list[Html | str]:
    pair, metric, effect = standing.against_base, view.metric, standing.effect
    assert pair is not None
    d = pair.difference
    interval = ""
    if d.low is not None and d.high is not None:
        interval = f"{metric.difference(d.low)} to {metric.difference(d.high)}"
    figures = [interval]
    if in_nats and view.study.bytes_per_token:
        figures.append(signed(effect.bits_per_byte, metric.digits) if effect else "")
    if in_nats:
        percent = effect.reduction_percent if effect else None
        figures.append("" if percent is None else f"{signed(percent, 2)} %")
    p = p_value(pair.p_holm) if pair.p_holm is not None else units.ABSENT
    return [
        view.arm_link(standing.arm), _difference(view, standing),
        *(view.to_runs(standing.arm, figure) for figure in (*figures, p, str(d.n))),
    ]  # fmt: skip
