"""The arms of a study by name: those of `arms`, crossed with the points of the grid."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mixlab.core.errors import LabError
from mixlab.core.nearest import did_you_mean

if TYPE_CHECKING:
    from mixlab.studies.study_file import StudyFile

Changes = dict[str, Any]
MAX_ARMS = 1000
MAX_NAME = 120
"""Bytes of an arm's name."""


class ArmSpec(NamedTuple):
    """One arm before it is resolved."""

    name: str
    recipe: str | None  # to begin from in place of the base
    changes: Changes


def arm_specs(study: "StudyFile") -> list[ArmSpec]:
    """The arms by name: those of `arms`, each with every point of the grid.

    Raises:
        LabError: too many, an arm named twice, or a key that a study decides itself.
    """
    points: list[tuple[str, Changes]] = [("", {})]
    for key, values in study.grid.items():
        named = list(values.items()) if isinstance(values, Mapping) else [
            (f"{key.rsplit('.', 1)[-1]}={_label(value)}", value) for value in values
        ]  # fmt: skip
        points = [
            (f"{label},{name}" if label else str(name), {**changes, key: value})
            for label, changes in points
            for name, value in named
        ]
        if len(points) > MAX_ARMS:
            raise LabError(f"grid: gives more than {MAX_ARMS} arms. Leave some values out.")
    specs = []
    for name, changes in (study.arms or {"": {}}).items():
        own = dict(changes or {})
        recipe = own.pop("recipe", None)
        if recipe is not None and not isinstance(recipe, str):
            raise LabError(f"arms.{name}.recipe = {recipe!r}: expected the name of a recipe.")
        for label, point in points:
            full = ",".join(part for part in (name, label) if part)
            specs.append(ArmSpec(full, recipe, {**own, **point}))
    _check_arms(study, specs)
    return specs


def _check_arms(study: "StudyFile", specs: list[ArmSpec]) -> None:
    names = [spec.name for spec in specs]
    for name in names:
        # Names become folders, lines of tables and headings of pages.
        is_plain = name.isprintable() and name == name.strip() and "/" not in name
        if not name or not is_plain or name.startswith(".") or len(name.encode()) > MAX_NAME:
            raise LabError(
                f"arms: {name!r}: expected a name of at most {MAX_NAME} bytes without '/', control "
                "characters and blanks at its ends, which does not begin with a dot."
            )
        if names.count(name) > 1:
            raise LabError(f"grid: two points are both called {name!r}. Name the points yourself.")
    if len(specs) > MAX_ARMS:
        raise LabError(f"arms: expected at most {MAX_ARMS}, but there are {len(specs)}.")
    if study.baseline is not None and study.baseline not in names:
        hint = did_you_mean(study.baseline, names)
        raise LabError(
            f"baseline = {study.baseline!r}: expected one of the arms "
            f"{', '.join(names[:20])}.{hint}"
        )
    for where, changes in [
        ("grid", study.grid),
        ("changes", study.changes),
        *((f"arms.{s.name}", s.changes) for s in specs),
    ]:
        for key in changes:
            reserved = {"seed": "seeds", "name": "name"}.get(str(key))
            if reserved is not None:
                raise LabError(
                    f"{where}.{key} = {changes[key]!r}: expected a key of a recipe that the study "
                    f"does not decide itself. Use the study's own key `{reserved}`."
                )


def _label(value: Any) -> str:
    """A value as part of an arm's name."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    text = re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).strip("-")
    return text[:40] or "none"
