"""Tasks by their names, as `Task.name` writes them: sudoku-dug-9x9-20-36, maze-10x10-path-12."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from mixlab.core.config import decode
from mixlab.core.errors import LabError, Rule
from mixlab.tasks import TASKS
from mixlab.tasks.base import Task

_FORMS: dict[str, tuple[str, str]] = {
    "sudoku": (
        r"sudoku-dug-(?P<size>\d+)x(?P=size)-(?P<low>\d+)-(?P<high>\d+)"
        r"(-(?P<grade>naked|singles|search))?",
        "sudoku-dug-6x6-16-22",
    ),
    "maze": (
        r"maze-(?P<size>\d+)x(?P=size)-path-(?P<min_path>\d+)(-(?P<style>carved))?",
        "maze-10x10-path-12",
    ),
    "arc_1d": (r"arc_1d-(?P<width>\d+)-demos-(?P<n_demos>\d+)", "arc_1d-16-demos-3"),
    "recall": (
        r"recall-(?P<n_pairs>\d+)-pairs-(?P<n_queries>\d+)-queries"
        r"-(?P<n_keys>\d+)-(?P<n_values>\d+)",
        "recall-8-pairs-4-queries-26-10",
    ),
    "reasoning-gym": (r"reasoning-gym-(?P<task>\w+)", "reasoning-gym-chain_sum"),
}
"""Kind -> the form of its names, and one of them."""
EXAMPLES = ", ".join(example for _, example in _FORMS.values())


def named_task(name: str) -> Task:
    """The task that a name stands for, with defaults for what the name leaves open.

    Raises:
        LabError: the name has no known form.
        ConfigError: it has, and asks for what cannot be made.
    """
    tree = _tree(name)
    if tree is None:
        raise LabError(f"task = {name!r}: expected a name such as {EXAMPLES}.")
    return decode(TASKS[tree["kind"]], tree)


def _tree(name: str) -> dict[str, Any] | None:
    """The settings that a name states; None where it has no known form."""
    for kind, (form, _) in _FORMS.items():
        match = re.fullmatch(form, name)
        if match is not None:
            return {"kind": kind, **_settings(match)}
    return None


def _by_name(value: Any) -> Any:
    """Settings in place of a name; all else as it is."""
    if not isinstance(value, str) or value in TASKS:
        return value
    tree = _tree(value)
    if tree is None:
        raise Rule("", value, f"a group of settings with a kind, or a name such as {EXAMPLES}")
    return tree


TaskChoice = Annotated[TASKS.annotation(), BeforeValidator(_by_name)]
"""The type of a config's field that takes a task: its settings, or its name."""


def _settings(match: re.Match[str]) -> dict[str, Any]:
    found = {
        key: int(value) if value.isdigit() else value
        for key, value in match.groupdict().items()
        if value is not None
    }
    if "low" in found:
        found["blanks"] = [found.pop("low"), found.pop("high")]
    return found
