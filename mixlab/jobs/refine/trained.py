"""A trained refiner, opened from its run folder, with the task that it was trained on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mixlab.core.config import read_yaml
from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import RefineRunConfig, decode_config
from mixlab.jobs.trained import find_checkpoint
from mixlab.nn.recursion.refiner import Refiner, build_refiner
from mixlab.tasks.base import Task
from mixlab.training import checkpoint as checkpoints


@dataclass(frozen=True)
class TrainedSolver:
    """Weights of one checkpoint, in evaluation mode, and what they can solve."""

    model: Refiner
    task: Task
    step: int
    exit_threshold: float | None  # that the run chose on its validation puzzles; None: it has none


def open_refiner(path: Path | str, which: str | int = "best") -> TrainedSolver:
    """Load a refiner from a run folder; `which` as for `jobs.trained.open_trained`.

    If the run keeps an average of its parameters, that is what is loaded: it is what was evaluated.

    Raises:
        RunError: no such run, or one of another kind.
        CheckpointError: no such checkpoint, or it is damaged.
    """
    run = RunDir.open(path)
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RefineRunConfig):
        raise RunError(
            f"run {run.path}: is of kind {config.kind}, which writes text and solves no puzzles. "
            f'Let it write by `mixlab generate {run.path} --prompt "..."`.'
        )
    loaded = checkpoints.load(find_checkpoint(run, which))
    model = build_refiner(config.model, config.seed)
    checkpoints.load_evaluated(model, loaded)
    found = run.read_json("refinement.json") or {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedSolver(
        model.to(device).eval(), config.data.task, loaded.step, found.get("exit_threshold")
    )
