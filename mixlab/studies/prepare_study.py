"""From the name of a study to a design that is ready to be planned or driven."""

from typing import Any, NamedTuple

import torch

from mixlab.core.config import Tree, decode, to_tree
from mixlab.core.provenance import n_usable_cores
from mixlab.jobs.screen import Screen
from mixlab.studies.design import Design, design
from mixlab.studies.runner import RunnerConfig
from mixlab.studies.study_file import load_study, smoke_study, study_tree


class Prepared(NamedTuple):
    """A study before its first run."""

    found: Design
    asked: Tree  # the study file, as it was written


def prepare_study(
    name_or_file: str,
    *,
    is_smoke: bool = False,
    runner: dict[str, Any] | None = None,
    screen: Screen,
) -> Prepared:
    """Read, check and settle a study; its data is prepared, nothing is trained.

    `runner` holds changes to the study's own `runner`; None leaves a setting as it is.

    Raises:
        LabError: anything wrong with the study.
    """
    asked, study = study_tree(name_or_file), load_study(name_or_file)
    changes = {key: value for key, value in (runner or {}).items() if value is not None}
    if changes:
        settings = decode(RunnerConfig, {**to_tree(study.runner), **changes})
        study = study.model_copy(update={"runner": settings})
    if is_smoke:
        study = smoke_study(study)
    return Prepared(design(study, is_smoke=is_smoke, screen=screen), asked)


def devices(found: Design) -> tuple[int, int]:
    """(GPUs, cores per worker) of this machine for this study."""
    train, runner = found.arms[found.baseline].config.train, found.study.runner
    n_gpus = torch.cuda.device_count() if train.device != "cpu" else 0
    return n_gpus, runner.threads or train.threads or 1


def default_workers(found: Design) -> int:
    """Runs at once on this machine."""
    n_gpus, threads = devices(found)
    runner = found.study.runner
    return runner.workers or n_gpus or max(1, (n_usable_cores() or 1) // threads)
