"""`mixlab study promote`: an arm that proved itself, written down as a recipe."""

import re
from pathlib import Path
from typing import Any

from mixlab.core.config import dump_yaml
from mixlab.core.errors import LabError
from mixlab.core.json_files import write_bytes_atomically
from mixlab.core.nearest import did_you_mean
from mixlab.core.recipes import list_recipes
from mixlab.studies.results import collect
from mixlab.studies.tuning import with_rate


def promote(folder: Path, arm: str, name: str) -> tuple[Path, list[str]]:
    """Write the arm, with the rate that was found for it, to NAME.yaml; returns path and remarks.

    `name` may be a path. The recipe is complete: it needs neither the study nor its base.

    Raises:
        LabError: no such arm, its rate is not known yet, or the file exists already.
    """
    results = collect(folder)
    row = _arm_row(results, arm)
    tuning = row["tuning"]
    if row["status"] == "failed":
        raise LabError(f"arm {arm!r}: failed ({row['why_not']}), so there is nothing to promote.")
    if tuning is not None and tuning["best_lr"] is None:
        raise LabError(
            f"arm {arm!r}: its learning rate is not found yet. Go on with the study first: "
            f"`mixlab study run {results['name']}`."
        )
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    _check_name(path)
    config = dict(row["config"])
    if tuning is not None:
        index = next(i for i in range(-200, 201) if 2.0 ** (i / 2) == tuning["best_factor"])
        config = with_rate(config, index)
    config["name"] = path.stem
    config["about"] = _about(results, row)
    for key in ("device", "precision", "threads"):  # of the machine, not of the recipe
        config["train"] = {k: v for k, v in config["train"].items() if k != key}
    text = f"# Written by `mixlab study promote`, from {results['name']}, arm {arm}.\n"
    write_bytes_atomically(path, (text + dump_yaml(config)).encode())
    return path, _remarks(results, row)


def _arm_row(results: dict[str, Any], arm: str) -> dict[str, Any]:
    for row in results["arms"]:
        if row["name"] == arm:
            return row
    names = [row["name"] for row in results["arms"]]
    hint = did_you_mean(arm, names)
    raise LabError(f"arm = {arm!r}: expected one of {', '.join(names)}.{hint}")


def _check_name(path: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path.stem):
        raise LabError(
            f"name = {path.stem!r}: expected letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit."
        )
    if path.stem in {info.name for info in list_recipes()} and path.parent == Path("."):
        raise LabError(f"name = {path.stem!r}: is a packaged recipe. Choose another name.")
    if path.exists():
        raise LabError(f"{path}: exists already. Choose another name, or delete it first.")


def _about(results: dict[str, Any], row: dict[str, Any]) -> str:
    values = [row["values"][seed] for seed in sorted(row["values"])]
    figures = "no run is finished"
    if values:
        mean = sum(values) / len(values)
        figures = f"{results['metric']['name']} {mean:.4f}, mean of {len(values)} seeds"
    tuned = "" if row["tuning"] is None else " with the rate found there"
    smoke = " at smoke size, which says nothing about the full one" if results["is_smoke"] else ""
    return f"Arm {row['name']} of the study {results['name']}{smoke}{tuned}: {figures}."


def _remarks(results: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """What somebody who uses the recipe should know."""
    remarks = []
    if not row["is_ranked"]:
        remarks.append(f"The arm is not ranked: {row['why_not']}.")
    if not results["is_complete"]:
        remarks.append("The study is not finished.")
    if results["is_smoke"]:
        remarks.append("This is the smoke size of the study.")
    return remarks
