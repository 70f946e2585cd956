"""`mixlab check` for runs and recipes of answer refinement, and the same before every training."""

import copy
import time
from dataclasses import replace
from pathlib import Path

import torch

from mixlab.checks import CHECKS, CheckResult, Finding
from mixlab.checks.refinement import (
    NOT_ASKED,
    REFINER_CHECKS,
    RefinerContext,
    TrainedRefiner,
)
from mixlab.core.errors import DataError
from mixlab.core.run_dir import RunDir
from mixlab.core.units import count, duration
from mixlab.jobs.check import CheckFailedError, CheckReport
from mixlab.jobs.config import RefineRunConfig, load_config
from mixlab.jobs.refine.session import RefineSession, prepare_puzzles
from mixlab.jobs.refine.trained import open_refiner
from mixlab.jobs.screen import Screen
from mixlab.jobs.smoke import shrink_refiner
from mixlab.nn.recursion.refiner import RefinerConfig, build_refiner, refiner_budget
from mixlab.tasks.examples import Puzzles
from mixlab.tasks.prepare import PreparedTask
from mixlab.training import checkpoint as checkpoints

N_PUZZLES = 200
"""Validation puzzles that a run is asked."""
MAX_PARAMS = 1_000_000
"""Larger refiners are checked as narrow copies: float64 on a CPU is slow."""


def check_refine_recipe(
    config: RefineRunConfig, screen: Screen, *, with_data: bool = False
) -> CheckReport:
    """Every check on first weights; those of the puzzles when `with_data` has them made."""
    data = prepare_puzzles(config, screen) if with_data else None
    return _report(config.name, config, _context(config, data), screen, [])


def check_refine_run(path: Path, screen: Screen) -> CheckReport:
    """Every check on the weights of a run that are evaluated, and on its puzzles."""
    run = RunDir.open(path)
    config = load_config(str(run.config_path))
    assert isinstance(config, RefineRunConfig)
    notes: list[str] = []
    data = _same_puzzles(run, config, screen, notes)
    context = _context(config, data)
    if not checkpoints.steps(run.checkpoints_path):
        notes.append("The run has no checkpoint: its first weights were checked.")
        return _report(str(path), config, context, screen, notes)
    trained = open_refiner(run.path, "last").model
    if data is not None:
        some = data.sets["validation"]
        n = min(N_PUZZLES, len(some))
        puzzles = Puzzles(some.inputs[:n], some.labels[:n], some.given[:n])
        context = replace(context, trained=TrainedRefiner(trained, puzzles))
    if _subject(config.model) == config.model:
        on_cpu = copy.deepcopy(trained).cpu()
        context = replace(context, build=lambda: copy.deepcopy(on_cpu))
    else:
        notes.append("Structure was checked on first weights; input-use and unigram on the run's.")
    return _report(str(path), config, context, screen, notes)


def check_refiner_before_training(run: RunDir, session: RefineSession, screen: Screen) -> None:
    """The same on first weights before a run, recorded in checks.json; once per run folder.

    Raises:
        CheckFailedError: names the check and what it measured.
    """
    config = session.config
    before = run.read_json("checks.json")
    if config.checks == "off" or (before is not None and before["passed"]):
        return
    report = _report(run.name, config, _context(config, session.data), screen, [])
    run.write_json("checks.json", report.tree())
    if report.failed:
        first = report.failed[0]
        raise CheckFailedError(
            f"check {first.name} failed, so nothing was trained: {first.finding.measured}. "
            f"{first.finding.meaning} To train all the same, set checks=off."
        )
    n_done = sum(result.verdict == "pass" for result in report.results)
    screen.note(f"{n_done} checks passed in {duration(report.seconds)} ({report.size}).")


def _context(config: RefineRunConfig, data: PreparedTask | None) -> RefinerContext:
    subject = _subject(config.model)
    return RefinerContext(
        build=lambda: build_refiner(subject, config.seed),
        optimizer=config.train.optimizer,
        loss_type=config.loss_type,
        task=config.data.task,
        sets=None if data is None else data.sets,
    )


def _subject(model: RefinerConfig) -> RefinerConfig:
    """What structure is checked on: the model itself or, in the place of a large one, a narrow
    copy."""
    return model if refiner_budget(model).n_params <= MAX_PARAMS else shrink_refiner(model)


def _report(
    name: str, config: RefineRunConfig, context: RefinerContext, screen: Screen, notes: list[str]
) -> CheckReport:
    start = time.perf_counter()
    results = []
    with torch.random.fork_rng(devices=[]), screen.task("Checking", len(REFINER_CHECKS)) as advance:
        for entry in REFINER_CHECKS.values():
            torch.manual_seed(0)  # for modules that draw from the default generator
            results.append(CheckResult(entry.name, entry.question, entry.run(context)))
            advance(1)
    results += [
        CheckResult(name, CHECKS[name].question, Finding("not applicable", "nothing", why, {}))
        for name, why in NOT_ASKED.items()
    ]
    subject = _subject(config.model)
    size = f"checked at full size, {count(refiner_budget(subject).n_params)} parameters"
    if subject != config.model:
        size = (
            f"checked on a copy that is {subject.d_model} of {config.model.d_model} wide, "
            f"{count(refiner_budget(subject).n_params)} parameters"
        )
    return CheckReport(name, size, results, time.perf_counter() - start, notes)


def _same_puzzles(
    run: RunDir, config: RefineRunConfig, screen: Screen, notes: list[str]
) -> PreparedTask | None:
    """The run's puzzles, if they can still be had as they were."""
    try:
        data = prepare_puzzles(config, screen)
    except DataError as error:
        notes.append(f"What needs the run's puzzles was left out: {error}")
        return None
    recorded = run.read_json("data.json")
    if recorded is None or recorded.get("content_hash") == data.manifest["content_hash"]:
        return data
    notes.append("The puzzles have changed since the run: what needs them was left out.")
    return None
