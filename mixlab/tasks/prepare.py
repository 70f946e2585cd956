"""The task of a refine run as three sets, built once and kept in the cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from mixlab.core.config import Config, digest, to_tree
from mixlab.core.errors import DataError
from mixlab.tasks.base import Task
from mixlab.tasks.names import TaskChoice
from mixlab.tasks.sets import TaskSet, build_set, prove_disjoint
from mixlab.tasks.splits import SPLIT_VERSION, SPLITS

SET_SEED = 1
"""All runs of a task share their sets, whatever the seed of the run."""


class TaskDataConfig(Config):
    """Which puzzles, and how many of them."""

    task: TaskChoice
    """What is to be solved."""
    n_train: PositiveInt = 8000
    """Different training puzzles; equivalent ones count once."""
    n_validation: PositiveInt = 500
    """Puzzles that are evaluated during training, and that choose the exit threshold."""
    n_test: PositiveInt = 2000
    """Puzzles that are looked at once, at the end."""
    augment: bool = True
    """Show each training puzzle under a new symmetry of the task at every visit."""

    def sizes(self) -> dict[str, int]:
        """How many puzzles of each split."""
        return {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}


@dataclass(frozen=True)
class PreparedTask:
    """The sets, proven to have no puzzle in common, and what data.json says of them."""

    task: Task
    sets: dict[str, TaskSet]
    manifest: dict[str, Any]


def prepare_task(
    cfg: TaskDataConfig,
    cache_dir: Path,
    progress: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]],
) -> PreparedTask:
    """Build or load the sets; `progress(description, total)` shows how far building is.

    Raises:
        DataError: fewer puzzles than asked for, a puzzle file that is wrong, or sets that overlap.
    """
    sets = {}
    for split, n in cfg.sizes().items():
        key = digest(
            [to_tree(cfg.task), cfg.task.generator_version, SPLIT_VERSION, split, n, SET_SEED]
        )
        path = cache_dir / "tasks" / f"{cfg.task.name}-{split}-{key}.npz"
        sets[split] = _cached(cfg.task, path, split) if _keeps(cfg.task) else None
        if sets[split] is None:
            with progress(f"Making {n} {split} puzzles of {cfg.task.name}", n) as advance:
                sets[split] = build_set(cfg.task, split, n, SET_SEED, advance)
            if _keeps(cfg.task):
                path.parent.mkdir(parents=True, exist_ok=True)
                sets[split].save(path)
    proven = {
        f"{a}, {b}": prove_disjoint(cfg.task, sets[a], sets[b])
        for a, b in (("train", "validation"), ("train", "test"), ("validation", "test"))
    }
    manifests = {split: sets[split].manifest for split in SPLITS}
    return PreparedTask(
        cfg.task,
        sets,
        {
            "task": cfg.task.name,
            "content_hash": digest([m["content_hash"] for m in manifests.values()]),
            "splits": manifests,
            "disjoint": proven,
        },
    )


def _keeps(task: Task) -> bool:
    """Puzzles of the user's own files are read anew: the files may change."""
    return not task.kind.endswith("-file")


def _cached(task: Task, path: Path, split: str) -> TaskSet | None:
    """A set built before; None where there is none or it cannot be used, which builds it anew."""
    if not path.exists():
        return None
    try:
        found = TaskSet.load(path, task)
    except DataError:
        return None
    return found if found.manifest["split"] == split else None
