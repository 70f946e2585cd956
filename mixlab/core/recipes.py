"""Recipes: the packaged YAML files that say what to train, and files of the user's own.

A recipe may start from another one (`extends: NAME`) and change some of its keys. A part of a
recipe may be replaced by a packaged preset of that part: `data=cosmopedia` lays the file
`recipes/data/cosmopedia.yaml` over the recipe's `data`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mixlab.core.config import Tree, merge, override, parse_override
from mixlab.core.errors import LabError
from mixlab.core.nearest import did_you_mean
from mixlab.core.packaged import Packaged

MAX_EXTENDS = 8
_RECIPES = Packaged("recipe", "recipes")


class RecipeInfo(NamedTuple):
    """One line of `mixlab list recipes`."""

    name: str
    about: str


def list_recipes() -> list[RecipeInfo]:
    """Every packaged recipe with the text of its `about` key."""
    found = []
    for name in sorted(_RECIPES.names(), key=lambda name: (name != "quickstart", name)):
        tree = _RECIPES.read(name)
        found.append(RecipeInfo(name, " ".join(str(tree.get("about", "")).split())))
    return found


def list_presets(part: str) -> list[str]:
    """The packaged presets of one part of a recipe, such as "data"."""
    return _presets(part).names()


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
            f"{part} = {name!r}: expected one of {', '.join(names)}.{did_you_mean(name, names)}"
        )
    return _presets(part).read(name)


def _load(name_or_file: str, depth: int) -> Tree:
    if depth > MAX_EXTENDS:
        raise LabError(f"extends = {name_or_file!r}: more than {MAX_EXTENDS} recipes in a chain.")
    tree, _ = _RECIPES.find(name_or_file)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise LabError(f"extends = {parent!r}: expected the name of a recipe.")
    return merge(_load(parent, depth + 1), tree)


def _presets(part: str) -> Packaged:
    return Packaged("recipe", f"{_RECIPES.place}/{part}")
