"""A study's changes laid over a recipe: dotted or nested keys, presets, and blocks left unused."""

from pathlib import Path
from typing import Any

from mixlab.core.config import Tree, decode, read_yaml, set_path
from mixlab.core.errors import LabError, Rule
from mixlab.core.recipes import load_recipe, override_preset
from mixlab.core.run_dir import is_run
from mixlab.nn.pattern import Pattern
from mixlab.studies.arms import ArmSpec, Changes
from mixlab.studies.study_file import StudyFile


def arm_tree(study: StudyFile, spec: ArmSpec) -> Tree:
    """The arm's recipe with the changes of the study and its own.

    Raises:
        LabError: no such recipe, or a key that has no place in it.
    """
    tree = base_tree(spec.recipe or study.base)
    tree.pop("name", None)
    tree = apply_changes(tree, study.changes)
    return drop_unused_blocks(apply_changes(tree, spec.changes))


def base_tree(source: str) -> Tree:
    """A packaged recipe, a YAML file, or the config of a run folder."""
    path = Path(source)
    if is_run(path):
        return read_yaml(path / "config.yaml")
    return load_recipe(source)


def apply_changes(tree: Tree, changes: Changes) -> Tree:
    """`tree` with every change merged in at its key; changes of a `kind` go first, as overrides."""
    items = [(str(key).split("."), value) for key, value in changes.items()]
    items.sort(key=lambda item: item[0][-1] != "kind")
    for path, value in items:
        if not all(path):
            raise LabError(f"{'.'.join(path)!r}: expected a dotted key such as train.batch_size.")
        preset = None
        if len(path) == 1 and isinstance(value, str):
            preset = override_preset(tree, path[0], value)
        tree = set_path(tree, path, _nested(value)) if preset is None else preset
    return tree


def _nested(value: Any) -> Any:
    """`value` with the dotted keys of its groups turned into groups, at any depth."""
    if not isinstance(value, dict):
        return value
    tree: Tree = {}
    for key, below in value.items():
        path = str(key).split(".") if all(str(key).split(".")) else [str(key)]
        tree = set_path(tree, path, _nested(below))
    return tree


def drop_unused_blocks(tree: Tree) -> Tree:
    """Without the blocks that the pattern places nowhere: an arm may do without one of the base's.

    Where the pattern cannot be read, all stay, and the config's own check says what is wrong.
    """
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("blocks"), dict):
        return tree
    blocks, pattern, n_layers = model["blocks"], model.get("pattern"), model.get("n_layers")
    if pattern is None or not isinstance(n_layers, int):
        return tree
    try:
        used = set(decode(Pattern, pattern).expand(n_layers))
    except (LabError, Rule):
        return tree
    kept = {name: block for name, block in blocks.items() if name in used}
    if not kept or set(kept) == set(blocks) or not used <= set(blocks):
        return tree
    model = {**model, "blocks": kept}
    if len(kept) == 1:
        model["pattern"] = None
    return {**tree, "model": model}
