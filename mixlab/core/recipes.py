"""Recipes: the packaged YAML files that say what to train, and files of the user's own.

A recipe may start from another one (`extends: NAME`) and change some of its keys. A part of a
recipe may be replaced by a packaged preset of that part: `data=cosmopedia` lays the file
`recipes/data/cosmopedia.yaml` over the recipe's `data`.
"""

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from mixlab.core.config import Tree, merge, override, parse_override, parse_yaml, read_yaml
from mixlab.core.errors import LabError

MAX_EXTENDS = 8


class RecipeInfo(NamedTuple):
    """One line of `mixlab list recipes`."""

    name: str
    about: str


def list_recipes() -> list[RecipeInfo]:
    """Every packaged recipe with the text of its `about` key."""
    found = []
    for name in sorted(_names(_folder()), key=lambda name: (name != "quickstart", name)):
        tree = _packaged(_folder(), name)
        found.append(RecipeInfo(name, " ".join(str(tree.get("about", "")).split())))
    return found


def list_presets(part: str) -> list[str]:
    """The packaged presets of one part of a recipe, such as "data"."""
    folder = _folder() / part
    return _names(folder) if folder.is_dir() else []


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Tree:
    """The tree of a packaged recipe or of a YAML file, with `key=value` overrides applied.

    Raises:
        LabError: no such recipe or file, or it is not a valid recipe file.
    """
    tree = _load(name_or_file, depth=0)
    plain: list[str] = []
    for text in overrides:
        path, value = parse_override(text)
        preset = None
        if len(path) == 1 and isinstance(value, str):
            preset = override_preset(tree, path[0], value)
        if preset is None:
            plain.append(text)
        else:
            tree = preset
    if overrides:
        # What the recipe says of itself need not be true of a changed one.
        tree["about"] = f"{name_or_file} with {', '.join(overrides)}."
    return override(tree, plain)


def override_preset(tree: Tree, part: str, name: str) -> Tree | None:
    """`tree` with the preset `name` laid over `part`; None if that part has no presets.

    Raises:
        LabError: the part has presets, and this is none of them.
    """
    if not list_presets(part):
        return None
    return {**tree, part: merge(tree.get(part, {}), load_preset(part, name))}


def load_preset(part: str, name: str) -> Tree:
    """The tree of a packaged preset, such as ("data", "cosmopedia")."""
    names = list_presets(part)
    if name not in names:
        raise LabError(
            f"{part} = {name!r}: expected one of {', '.join(names)}.{_did_you_mean(name, names)}"
        )
    return _packaged(_folder() / part, name)


def _load(name_or_file: str, depth: int) -> Tree:
    if depth > MAX_EXTENDS:
        raise LabError(f"extends = {name_or_file!r}: more than {MAX_EXTENDS} recipes in a chain.")
    names = _names(_folder())
    if name_or_file in names:
        tree = _packaged(_folder(), name_or_file)
        tree.setdefault("name", name_or_file)
    else:
        path = Path(name_or_file)
        looks_like_file = path.suffix in (".yaml", ".yml") or path.exists() or path.parent.name
        if not looks_like_file:
            raise LabError(
                f"recipe = {name_or_file!r}: expected one of {', '.join(names)}, or a YAML file."
                f"{_did_you_mean(name_or_file, names)}"
            )
        if path.is_dir():
            raise LabError(
                f"{path} is a folder; a recipe is a YAML file or one of {', '.join(names)}."
            )
        tree = read_yaml(path)
        tree.setdefault("name", _run_name(path.stem))
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise LabError(f"extends = {parent!r}: expected the name of a recipe.")
    return merge(_load(parent, depth + 1), tree)


def _run_name(stem: str) -> str:
    """A file's name as the name of a run folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run"


def _folder() -> Traversable:
    return files("mixlab") / "recipes"


def _names(folder: Traversable) -> list[str]:
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def _packaged(folder: Traversable, name: str) -> Tree:
    file = folder / f"{name}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), f"recipe {name}")


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else ""
