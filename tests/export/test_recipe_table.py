"""The table of docs/export.md says of every recipe what the verdict says."""

from pathlib import Path

from mixlab.core.recipes import list_recipes
from mixlab.export.target import ENGINES
from mixlab.export.verdict import verdict
from mixlab.jobs.config import RunConfig, load_config

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def rows() -> list[str]:
    """The lines that the table must have; print them to bring it up to date."""
    lines = []
    for recipe in list_recipes():
        config = load_config(recipe.name)
        label, answers = "none", ["no"] * len(ENGINES)
        if isinstance(config, RunConfig):
            found = verdict(config.model)
            answers = [answer.answer for answer in found.answers]
            label = found.target.label if found.target else "none"
        lines.append(f"| `{recipe.name}` | {label} | {' | '.join(answers)} |")
    return lines


def test_table_is_complete_and_true():
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("| recipe | architecture |")
    assert text[start:].split("\n\n")[0].splitlines()[2:] == rows()


if __name__ == "__main__":
    print("\n".join(rows()))
