"""For the record: failed runs, screening, the reporting checklist, and every run with its link."""

from mixlab.core import units
from mixlab.report.study.figures import plural, rate
from mixlab.report.study.html import Column, Html, join, link, table, tag
from mixlab.report.study.material import Run
from mixlab.report.study.rate_sections import tuning_note
from mixlab.report.study.view import View, paragraph, section
from mixlab.report.study.words import falsified_by, uneven_times


def failed(view: View) -> Html:
    """Runs that failed, with their error; arms that were dropped."""
    runs = [run for run in view.study.runs if run.status == "failed"]
    if not runs:
        return Html("")
    parts = []
    for run in runs:
        purpose = f"rate {rate(run.lr)}" if run.is_tuning else f"seed {run.seed}"
        kind = f": {run.error_kind}" if run.error_kind else ""
        tried = f", {plural(run.attempts, 'attempt')}"
        place = join([" ", link(purpose, view.href(run)), f"{kind}{tried}"])
        head = tag("p", view.arm_link(view.study.arm(run.arm)), place)
        parts += [head, tag("pre", run.error or "No error was recorded.")]
    text = (
        "These runs are left out above; the others of their arms count. An arm that fails for some "
        "seeds only may look better than it is."
    )
    return section("failed", "Failed runs", paragraph(text), *parts)


def screening(view: View) -> Html:
    """Rounds of sequential halving: who was dropped when."""
    study = view.study
    if not study.screening:
        return Html("")
    columns = [Column("round"), Column("arms", True), Column("dropped")]
    rows: list[list[Html | str]] = []
    for row in study.screening_rows:
        n_seeds = row.get("n_seeds", "?")
        dropped = [str(name) for name in row.get("dropped") or ()]
        state = (
            ", ".join(dropped) if dropped else "none" if row.get("is_finished") else "unfinished"
        )
        rows.append([f"{n_seeds} seeds", str(len(row.get("arms") or ())), state])
    text = (
        f"Arms were screened by sequential halving ({study.screening} seeds): after each round the "
        "worse half was dropped, and only the rest got more seeds. With few seeds a good arm is "
        'dropped now and then, so "dropped" does not mean "shown to be worse".'
    )
    return section(
        "screening", "Screening", paragraph(text), table(columns, rows) if rows else None
    )


def checklist(view: View) -> Html:
    """What a reader needs to judge an ablation (after Dodge et al., arXiv:1909.03004)."""
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in _items(view)
    ]
    text = (
        "What should be reported of an ablation, filled in from the records of this study "
        "(after Dodge et al., arXiv:1909.03004)."
    )
    return section(
        "checklist", "Reporting checklist", paragraph(text),
        tag("table", tag("tbody", *rows), class_="checklist"),
    )  # fmt: skip


def _items(view: View) -> list[tuple[str, str | Html]]:
    study, analysis, facts = view.study, view.analysis, view.study.facts
    missing = tag("span", "not recorded", class_="quiet")
    runs = study.runs
    states = {state: sum(r.status == state for r in runs) for state in
              ("finished", "failed", "waiting", "running", "dropped")}  # fmt: skip
    every = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    aside = (
        f"; {plural(len(study.set_aside), 'result')} of earlier versions set aside"
        if study.set_aside
        else ""
    )
    method, pairing = _method(view), facts.get("pairing", "pairing not recorded")
    matched = ", ".join(match.label for match in study.match) or "nothing"
    items: list[tuple[str, str | Html]] = [
        ("All runs", f"{plural(len(runs), 'run')}: {every}{aside}; each is listed below"),
        ("Seeds", f"{', '.join(map(str, study.seeds))}; {pairing}"),
        ("Interval and test", method),
        ("Noise floor", _noise(view)),
        ("Tuning", tuning_note(view)),
        ("Screening", f"halving, {study.screening} seeds" if study.screening else "none"),
        ("Matched quantity", join([matched, link("realised values", "#matching")], "; ")),
        ("Length of a run", "; ".join(
            facts[name] for name in ("budget", "share of text", "tokens per parameter")
            if name in facts
        ) or missing),
        ("Text", facts.get("text") or missing),
        ("Data hash", tag("code", facts["data hash"]) if "data hash" in facts else missing),
        ("Split", facts.get("split") or missing),
        ("Overlap", facts.get("overlap") or missing),
        ("Metric", f"{view.metric.axis}, {view.metric.better}, at the end of the schedule"),
        ("Percent", "loss reduction, (base - arm) / base; beside it nats and bits per byte"),
        ("Test text", _test(view)),
        ("Unigram entropy", _unigram(view)),
        ("Hardware", facts.get("hardware") or missing),
        ("Time and compute", join(
            [facts.get("cost") or _spent(view), uneven_times(analysis)], ". "
        )),
        ("Software", facts.get("software") or missing),
        ("Commit", _commit(view) or missing),
        ("Curves", link("as it trained", "#curves")),
        ("What would show it wrong", falsified_by(analysis, view.metric)),
    ]  # fmt: skip
    return items


def _commit(view: View) -> Html:
    facts = view.study.facts
    if "commit" in facts:
        return tag("code", facts["commit"])
    if "code" in facts:
        return join(["none recorded; digest of the code ", tag("code", facts["code"])])
    return Html("")


def _method(view: View) -> str:
    comparison, study = view.analysis.comparison, view.study
    if comparison is None or not comparison.n_tested:
        return "none: a test needs two seeds"
    methods = sorted({p.difference.method for p in comparison.pairs if p.difference.p is not None})
    pooled = (
        "; the error of a difference is that of its pair or of all arms together, whichever is "
        f"larger, with {plural(comparison.df, 'degree')} of freedom"
        if comparison.df and len(comparison.arms) > 2
        else ""
    )
    return (
        f"{', '.join(methods)}, two-sided, {100 * (1 - study.alpha):g} % intervals{pooled}; Holm's "
        f"correction over {plural(comparison.n_tested, 'comparison')}; "
        f"n = {plural(view.analysis.n_seeds, 'seed')} per arm"
    )


def _noise(view: View) -> str:
    floor, metric = view.analysis.floor, view.metric
    if floor is None or floor.sd is None:
        return "unknown: the base arm has fewer than two runs"
    text = f"sd {metric.size(floor.sd)} over {plural(floor.n, 'seed')} of {view.study.base}"
    if view.analysis.detectable:
        text += (
            f"; smallest difference found in 8 of 10 cases {metric.size(view.analysis.detectable)}"
        )
    return text


def _test(view: View) -> str | Html:
    """The metric on test text, which no decision has seen."""
    key = view.study.metric
    parts: list[Html | str] = []
    for standing in view.analysis.standings:
        found = [run.test[key] for run in standing.arm.finished if key in run.test]
        if found:
            mean = sum(found) / len(found)
            figure = view.to_runs(standing.arm, view.metric.value(mean))
            parts.append(join([view.arm_link(standing.arm), " ", figure]))
    if not parts:
        return "not measured"
    return join([f"{view.metric.unit}, means over seeds, for the record and not used above: ",
                 tag("span", *parts, class_="key")])  # fmt: skip


def _unigram(view: View) -> str:
    values = sorted({round(r.unigram, 4) for r in view.study.runs if r.unigram is not None})
    if not values:
        return "not recorded"
    shown = " to ".join(dict.fromkeys(f"{v:.3f}" for v in (values[0], values[-1])))
    return f"{shown} nats per token: what a model reaches that ignores the context"


def _spent(view: View) -> str:
    flops = sum(run.realised.get("flops", 0.0) for run in view.study.runs)
    seconds = sum(run.realised.get("seconds", 0.0) for run in view.study.runs)
    return f"{units.flops(flops)} FLOPs, {units.duration(seconds)} of training in all"


def all_runs(view: View) -> Html:
    """Every run with its figures and its folder."""
    key = view.study.metric
    columns = [
        Column("run"), Column(view.metric.unit or view.metric.label, True), Column("rate", True),
        Column("tokens", True), Column("FLOPs", True), Column("time", True), Column("state"),
    ]  # fmt: skip
    groups = []
    for standing in view.analysis.standings:
        arm = standing.arm
        rows = [
            _run_row(view, run, key)
            for run in (*arm.runs, *sorted(arm.tuning, key=lambda r: (r.lr or 0.0, r.seed)))
        ]
        about = paragraph(arm.about, class_="small") if arm.about else None
        body = table(columns, rows) if rows else paragraph("no run yet", class_="quiet")
        groups.append(tag("div", tag("h3", view.arm_link(arm)), about, body, id=view.arm_id(arm)))
    return section(
        "runs", "Every run", paragraph("The first column leads to the run folder, with its report, "
        "config, curves and samples."), *groups,
    )  # fmt: skip


def _run_row(view: View, run: Run, key: str) -> list[Html | str]:
    purpose = f"rate {rate(run.lr)}, seed {run.seed}" if run.is_tuning else f"seed {run.seed}"
    value = run.results.get(key)
    realised = run.realised
    return [
        link(purpose, view.href(run)),
        link(view.metric.value(value), view.href(run)) if value is not None else "",
        rate(run.lr) if run.lr else "",
        units.count(realised["tokens"]) if "tokens" in realised else "",
        units.flops(realised["flops"]) if "flops" in realised else "",
        units.duration(realised["seconds"]) if "seconds" in realised else "",
        tag("span", f"{run.status}{' (tuning)' if run.is_tuning else ''}",
            class_="bad" if run.status == "failed" else "quiet"),
    ]  # fmt: skip
