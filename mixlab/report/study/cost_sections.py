"""What the arms cost: the fronts of quality against cost, and whether what was to match matches."""

from mixlab.core import units
from mixlab.report.study.figures import QUANTITIES, listed, percent, plural, rate
from mixlab.report.study.html import Column, Html, join, table, tag
from mixlab.report.study.material import Match
from mixlab.report.study.view import View, paragraph, section
from mixlab.report.study.words import uneven_times
from mixlab.stats.bootstrap import MIN_SEEDS

_SAME = 5e-5
"""Relative difference that no table shows."""
_ALWAYS = ("params", "active_params", "tokens", "steps", "flops", "seconds")


def fronts(view: View) -> Html:
    """The charts, and how sure it is that an arm is on each front."""
    found = view.analysis.fronts
    flat = [_lower_first(QUANTITIES[name].label) for name in view.analysis.flat_costs]
    note = (
        paragraph(f"No front for {listed(flat)}: all arms are within 2 % of each other.",
                  class_="small")
        if flat else None
    )  # fmt: skip
    uneven = uneven_times(view.analysis)
    aside = paragraph(uneven, class_="small") if uneven else None
    if not found:
        return section("fronts", "Quality against cost", note, aside)
    text = (
        "An arm is on the front (filled mark) if no other has both a better result and a lower "
        "cost. The line is the best that each cost buys, the band 95 % of the bootstrap draws over "
        "seeds. "
        f"Vertical axis: {view.metric.axis}."
    )
    columns = [
        Column("on the front in"),
        *(Column(_lower_first(QUANTITIES[f.cost].label), True) for f in found),
    ]
    rows: list[list[Html | str]] = []
    for standing in view.analysis.standings:
        name = standing.arm.name
        if any(name in front.shares for front in found):
            cells = [
                tag("span", view.to_runs(standing.arm, percent(front.shares[name], 0)),
                    class_=None if front.shares[name] >= 0.05 else "quiet",
                    title=QUANTITIES[front.cost].form(front.costs[name]))
                for front in found
            ]  # fmt: skip
            rows.append([view.arm_link(standing.arm), *cells])
    return section(
        "fronts", "Quality against cost", paragraph(text), view.charts("fronts", "three"),
        view.key([s.arm for s in view.analysis.standings if s.summary]),
        tag("h3", "How often each arm is on the front"),
        paragraph(_share_note(view), class_="small"), table(columns, rows), note, aside,
    )  # fmt: skip


def _share_note(view: View) -> str:
    few = view.analysis.n_seeds < MIN_SEEDS
    return "Share of the bootstrap draws" + (
        f", which {plural(view.analysis.n_seeds, 'seed')} make surer than it is: a draw can only "
        "repeat the runs that there are."
        if few
        else "."
    )


def matching(view: View) -> Html:
    """What was held equal and what came out, arm by arm."""
    study = view.study
    names = [m.quantity for m in study.match]
    shown = [q for q in dict.fromkeys([*names, *_ALWAYS]) if q in QUANTITIES and _is_known(view, q)]
    if "active_params" in shown and "active_params" not in names and _same_as_params(view):
        shown.remove("active_params")
    columns = [
        Column("arm"),
        *(Column(_lower_first(QUANTITIES[q].label).removeprefix("training "), True) for q in shown),
        Column("rate", True, "learning rate"),
        Column("differs from the base recipe by", is_wide=True),
    ]
    rows: list[list[Html | str]] = []
    for arm in study.arms:
        cells: list[Html | str] = [view.arm_link(arm)]
        for quantity in shown:
            cells.append(view.to_runs(arm, _matched_cell(view, quantity, arm.mean(quantity))))
        changed = join(
            [tag("code", f"{key}={_short(value)}") for key, value in arm.changes.items()], " "
        ) or tag("span", "nothing", class_="quiet")
        solved = tag("div", "to match: ", tag("code", arm.matching), class_="small")
        cells += [
            view.to_runs(arm, rate(arm.lr) if arm.lr else ""),
            tag("div", changed, solved if arm.matching else None),
        ]
        rows.append(cells)
    return section(
        "matching", "What was held equal", *(paragraph(_verdict(view, m)) for m in study.match),
        _compute_note(view),
        None if study.match else paragraph(
            "Nothing was matched: arms may differ in size, length and compute as well as in what "
            "the study asks about."
        ),
        tag("div", table(columns, rows), class_="scroll"),
    )  # fmt: skip


def _verdict(view: View, match: Match) -> str:
    found = [
        (arm.name, value) for arm in view.study.arms if (value := arm.mean(match.quantity))
        and (arm.finished or match.quantity in ("params", "active_params"))
    ]  # fmt: skip
    quantity = QUANTITIES.get(match.quantity)
    label = quantity.label if quantity else match.quantity
    if len(found) < 2:
        return f"{label}: to be equal; not measured yet."
    low, high = min(found, key=lambda one: one[1]), max(found, key=lambda one: one[1])
    spread = high[1] / low[1] - 1
    form = quantity.form if quantity else units.count
    ends = f"{form(low[1])} ({low[0]}) to {form(high[1])} ({high[0]})"
    judged = (
        "as asked"
        if spread <= match.tolerance
        else f"more than the {percent(match.tolerance, 0)} asked for"
    )
    if spread < _SAME:
        return f"{label}: equal in all arms, {form(low[1])}."
    return f"{label}: {ends}, a spread of {percent(spread, 2)}, {judged}."


def _compute_note(view: View) -> Html | None:
    """How far training FLOPs differ where nothing made them equal."""
    if any(match.quantity == "flops" for match in view.study.match):
        return None
    spent = [
        (value, arm.name) for arm in view.study.arms
        if arm.finished and (value := arm.mean("flops"))
    ]  # fmt: skip
    if len(spent) < 2 or max(spent)[0] <= (1 + _SAME) * min(spent)[0]:
        return None
    (low, cheap), (high, dear) = min(spent), max(spent)
    return paragraph(
        f"Training FLOPs were not made equal: {dear} spent {percent(high / low - 1)} more than "
        f"{cheap}."
    )


def _matched_cell(view: View, quantity: str, value: float | None) -> Html | str:
    """The figure; where it was to match, and for FLOPs, with its distance from the base arm."""
    text = QUANTITIES[quantity].form(value)
    match = next((m for m in view.study.match if m.quantity == quantity), None)
    base = view.study.arm(view.study.base).mean(quantity)
    if (match is None and quantity != "flops") or value is None or not base:
        return text
    off = value / base - 1
    if abs(off) < _SAME:
        return text
    sign = "+" if off > 0 else "\u2212"
    class_ = "small" if match is None or abs(off) <= match.tolerance else "small bad"
    return join([text, tag("span", f"{sign}{100 * abs(off):.2f} %", class_=class_)], " ")


def _is_known(view: View, quantity: str) -> bool:
    return any(arm.mean(quantity) is not None for arm in view.study.arms)


def _same_as_params(view: View) -> bool:
    return all(arm.mean("params") == arm.mean("active_params") for arm in view.study.arms)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: object) -> str:
    text = str(value).replace("'", "")
    return text if len(text) <= 48 else f"{text[:45]}..."
