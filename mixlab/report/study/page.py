"""The report as one HTML page that needs nothing beside it."""

from importlib.resources import files

from mixlab.report.study import (
    cost_sections,
    rate_sections,
    record_sections,
    standing_sections,
)  # fmt: skip
from mixlab.report.study import training_sections as training
from mixlab.report.study.html import Html, join, link, tag
from mixlab.report.study.palette import DARK, LIGHT
from mixlab.report.study.view import View, paragraph

_NAMES = {
    "leaderboard": "Leaderboard",
    "differences": "Differences",
    "curves": "Curves",
    "seeds": "Seeds",
    "rates": "Learning rates",
    "fronts": "Cost",
    "matching": "Held equal",
    "screening": "Screening",
    "failed": "Failed",
    "checklist": "Checklist",
    "runs": "Runs",
}


def write_page(view: View) -> str:
    """The whole page. The same study gives the same text."""
    sections = {
        "leaderboard": standing_sections.leaderboard(view),
        "differences": standing_sections.differences(view),
        "curves": training.curves(view),
        "seeds": training.seeds(view),
        "rates": rate_sections.rates(view) or rate_sections.grid(view),
        "fronts": cost_sections.fronts(view),
        "matching": cost_sections.matching(view),
        "screening": record_sections.screening(view),
        "failed": record_sections.failed(view),
        "checklist": record_sections.checklist(view),
        "runs": record_sections.all_runs(view),
    }
    nav = tag(
        "nav",
        tag("div", *(link(_NAMES[name], f"#{name}") for name, text in sections.items() if text)),
    )
    body = join(
        [
            standing_sections.opening(view),
            nav,
            tag("main", *sections.values(), _footer()),
        ],
        "\n",
    )
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", f"Study {view.study.name}"),
            Html(f"<style>\n{_style(view)}</style>"),
        ],
        "\n",
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _footer() -> Html:
    return tag(
        "footer",
        paragraph(
            "Written by mixlab from the results of the study. The figures are in ",
            link("report.json", "report.json"), ", the pictures in ", link("plots", "plots/"),
            ", what was run in ", link("study.yaml", "study.yaml"), ".",
        ),
    )  # fmt: skip


def _style(view: View) -> str:
    text = (files("mixlab.report.study") / "style.css").read_text(encoding="utf-8")
    for word, theme in (("LIGHT", LIGHT), ("DARK", DARK)):
        colours = " ".join(f"--{name}: {colour};" for name, colour in theme.items())
        text = text.replace(f"{word} }}", f"{colours} }}", 1)
    # Pointing at an arm's name dims the lines of all others in the same section.
    lit = "\n".join(
        f"section:has(.k{own.series}:hover) .s:not(.s{own.series}) {{ opacity: 0.1; }}"
        for own in view.looks.values()
    )
    return f"{text}{lit}\n"
