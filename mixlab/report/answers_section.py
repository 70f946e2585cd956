"""The section of a run that learned from examples of question and answer: what it says when asked.

Shown with the number of questions, since 200 of them leave some percent of uncertainty.
"""

from collections.abc import Mapping
from typing import Any

from mixlab.core import units
from mixlab.report.markup import code, plain, table
from mixlab.report.material import Material

_N_SHOWN = 12


def answers_section(m: Material) -> str:
    """The section in markdown; empty for a run that was not asked anything."""
    facts = m.summary.get("answers")
    if not isinstance(facts, Mapping) or not facts.get("n"):
        return ""
    parts = ["## Answers", _sentence(facts)]
    groups = facts.get("by_group")
    if isinstance(groups, Mapping):
        before = (facts.get("before") or {}).get("by_group") or {}
        rows = [
            [plain(name), str(found["n"]), _share(found), _share(before.get(name))]
            for name, found in groups.items()
        ]
        header = ["questions of", "asked", "right", "right before tuning"]
        parts.append(table(header, rows, numbers=True))
    rows = m.run.read_jsonl("answers.jsonl")[:_N_SHOWN]
    if rows:
        shown = [
            [_cell(row["question"]), _cell(row["expected"]), _cell(row["given"]),
             "yes" if row["exact"] else "no"]
            for row in rows
        ]  # fmt: skip
        parts.append(table(["question", "right answer", "given answer", "right"], shown))
        parts.append(f"All of them: {code('answers.jsonl')}.")
    return "\n\n".join(parts)


def _sentence(facts: Mapping[str, Any]) -> str:
    n, exact, error = facts["n"], facts["exact"], facts.get("standard_error")
    spread = "" if error is None else f", standard error {units.percent(error)}"
    text = (
        f"Of {n} questions of the test split, {exact} were answered to the letter "
        f"({units.percent(exact / n)}{spread}), with the likeliest token at every place."
    )
    before = facts.get("before")
    if before:
        text += f" The parent, asked the same: {before['exact']}."
    return text


def _share(found: Mapping[str, Any] | None) -> str:
    return units.percent(found["exact"] / found["n"]) if found else ""


def _cell(text: str) -> str:
    text = " ".join(str(text).split())
    return code(text if len(text) <= 60 else f"{text[:57]}...") if text else ""
