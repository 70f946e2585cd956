"""comparison.json: what earlier calls compared in a folder, and whether a later one fits it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixlab.core.config import diff, to_tree
from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json, write_json
from mixlab.jobs.config import AnyRunConfig, decode_config
from mixlab.studies.comparison_arms import Arm
from mixlab.studies.side_by_side import time_side_by_side

FILE = "comparison.json"


class Memory:
    """comparison.json: what earlier calls have compared in this folder."""

    def __init__(
        self,
        folder: Path,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        controls: bool,
        asked: Mapping[str, Any],
    ) -> None:
        """Hold what is asked for against what the folder has.

        Raises:
            LabError: the folder holds something else, or an arm that has changed.
        """
        self.path = folder / FILE
        before = self.open(folder)
        known = before.get("arms", {})
        for arm in arms:
            tree = to_tree(arm.config)
            changes = diff(known.get(arm.name, tree), tree)
            for key in ("name", "about", "seed"):
                changes.pop(key, None)
            if changes:
                raise LabError(
                    f"{folder}: holds a comparison in which {arm.name} is another one. It differs "
                    f"in {_listed(changes)}. Undo that to go on, or choose another -o."
                )
        self.content: dict[str, Any] = {
            "format": 1,
            "asked": dict(asked),
            "arms": {**known, **{arm.name: to_tree(arm.config) for arm in arms}},
            "seeds": list(seeds),
            "controls": bool(controls or before.get("controls")),
            "same_time": before.get("same_time", {}),
        }

    @staticmethod
    def open(folder: Path) -> dict[str, Any]:
        """The content of an earlier call; empty where there is none."""
        if not folder.exists():
            return {}
        if not folder.is_dir():
            raise LabError(f"-o {folder}: is a file: expected a folder, or a name that is free.")
        if not any(folder.iterdir()):
            return {}
        before = read_json(folder / FILE)
        if not isinstance(before, dict) or not {"arms", "asked", "seeds"} <= set(before):
            raise LabError(
                f"-o {folder}: holds other content, and no comparison: expected an empty folder, a "
                "name that is free, or the folder of the comparison to go on with."
            )
        return before

    @property
    def has_controls(self) -> bool:
        """Whether controls are made, now or by an earlier call."""
        return self.content["controls"]

    def same_time(self, arm: Arm, plain: AnyRunConfig) -> Mapping[str, float]:
        """The length of the control of the time, and the speeds that it follows from.

        Measured once: later figures would differ a little and make other runs of it.
        """
        known = self.content["same_time"]
        if arm.name not in known:
            timed = time_side_by_side(arm.config, plain)
            n_steps = round(arm.config.train.length.amount * timed.first / timed.second)
            known[arm.name] = {
                "steps": max(1, n_steps),
                "update_seconds": timed.first,
                "plain_update_seconds": timed.second,
            }
            self.save()
        return known[arm.name]

    def save(self) -> None:
        write_json(self.path, self.content)


def _listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in list(changes.items())[:6]]
    return "; ".join(shown) + ("; ..." if len(changes) > 6 else "")


def words_of(arguments: Sequence[Any]) -> list[str] | None:
    """The arguments as they can be typed again; None where one is a config."""
    paths = [getattr(argument, "path", argument) for argument in arguments]
    return [str(p) for p in paths] if all(isinstance(p, str | Path) for p in paths) else None


def asked_before(
    folder: Path, overrides: Sequence[str], seeds: Any
) -> tuple[Sequence[Any], Sequence[str], Any]:
    """What an earlier call in this folder was asked, when a later one only names the folder.

    Raises:
        LabError: there is no comparison, or overrides are given, which would make another one.
    """
    before = Memory.open(folder)
    if not before:
        raise LabError(
            f"-o {folder}: holds no comparison to go on with: expected run folders or recipes to "
            "compare as well."
        )
    if overrides:
        raise LabError(
            f"override {overrides[0]!r}: expected the recipes as well, and a new folder. Without "
            f"them, the comparison of {folder} goes on as it was asked for."
        )
    asked = before["asked"]
    arguments = asked["arguments"]
    if arguments is None:
        arguments = [decode_config(tree) for tree in before["arms"].values()]
        return arguments, [], seeds or before["seeds"]
    return arguments, asked["overrides"], seeds or before["seeds"]
