"""The runs of a comparison: made by the job store of the studies where they lack, and read."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixlab.core.json_files import read_json
from mixlab.report.comparison_runs import RunFigures, read_run
from mixlab.stats import DocumentLosses
from mixlab.stats.bootstrap import MIN_SEEDS
from mixlab.studies.comparison_arms import Arm
from mixlab.studies.progress import StudyScreen
from mixlab.studies.requests import Request, run_requests
from mixlab.studies.runner import RunnerConfig


class Maker:
    """Trains what is missing, through the job store of the studies."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        runner: RunnerConfig,
        study_screen: StudyScreen,
    ) -> None:
        self.folder, self.seeds, self.runner = folder, seeds, runner
        self.study_screen = study_screen
        self._documents: dict[str, dict[int, Path]] = {}
        self._orders: dict[int, dict[str, str]] = {}  # seed -> arm -> hash of its sequences

    def make(self, arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
        """The arms with their runs, and the runs that failed, in words."""
        requests, places = [], {}
        for arm in arms:
            for seed in self.seeds if arm.is_trained_here and not arm.runs else ():
                label = f"{arm.name}, seed {seed}"
                requests.append(Request(label, arm.seeded(seed)))
                places[label] = (arm.name, seed)
        if not requests:
            return list(arms), []
        rows = run_requests(
            self.folder, requests, runner=self.runner, study_screen=self.study_screen,
            documents=len(self.seeds) >= MIN_SEEDS,
        )  # fmt: skip
        made: dict[str, dict[int, Path]] = {}
        failures = []
        for label, row in rows.items():
            name, seed = places[label]
            if row["status"] != "done":
                error = row["error"]
                failures.append(f"{label} failed ({error['kind']}): {error['message']}")
                continue
            made.setdefault(name, {})[seed] = self.folder / row["run"]
            if row.get("documents"):
                self._documents.setdefault(name, {})[seed] = self.folder / row["documents"]
            if row.get("order"):
                self._orders.setdefault(seed, {})[name] = row["order"]
            self._link(name, seed, row["run"])
        return [replace(arm, runs=made.get(arm.name, arm.runs)) for arm in arms], failures

    def saw_the_same(self, arms: Sequence[Arm]) -> bool | None:
        """Whether all arms of a seed saw the same sequences in the same order, by their hashes.

        None where an arm was not trained here.
        """
        names = {arm.name for arm in arms}
        if not self._orders or any(set(orders) < names for orders in self._orders.values()):
            return None
        return all(len(set(orders.values())) == 1 for orders in self._orders.values())

    def documents(
        self, arms: Sequence[Arm], runs: Mapping[str, Sequence[RunFigures]], seeds: Sequence[int]
    ) -> dict[str, dict[int, DocumentLosses]] | None:
        """The losses by document of all runs; None where one lacks them."""
        if any(
            set(self._documents.get(a.name, {})) != {r.seed for r in runs[a.name]} for a in arms
        ):
            return None
        found: dict[str, dict[int, DocumentLosses]] = {}
        for name, paths in self._documents.items():
            for seed, path in paths.items():
                content = read_json(path)
                losses = DocumentLosses(np.array(content["nats"]), np.array(content["tokens"]))
                found.setdefault(name, {})[seed] = losses
        sets = [losses.n_targets for by_seed in found.values() for losses in by_seed.values()]
        if len(seeds) < MIN_SEEDS or any(not np.array_equal(sets[0], other) for other in sets):
            return None
        return found

    def _link(self, name: str, seed: int, run: str) -> None:
        """arms/NAME/seed-1: a help for people, nothing more."""
        link = self.folder / "arms" / plain_name(name) / f"seed-{seed}"
        target = os.path.join("..", "..", run)
        with suppress(OSError):  # a file system without links
            if link.is_symlink() and os.readlink(link) == target:
                return
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def read_runs(arms: Sequence[Arm], seeds: Sequence[int]) -> dict[str, list[RunFigures]]:
    """The finished runs of every arm that has one, by seed."""
    found = {}
    for arm in arms:
        figures = [read_run(arm.runs[seed]) for seed in sorted(arm.runs) if seed in seeds]
        if figures:
            found[arm.name] = figures
    return found


def plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
