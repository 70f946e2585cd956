"""Train a config into a run folder, or go on with a run: the composition root of training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixlab.core.config import diff, dump_yaml, override, read_yaml, to_tree
from mixlab.core.errors import CheckpointError, ConfigError, RunError
from mixlab.core.recipes import load_recipe
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, decode_config, load_config
from mixlab.jobs.device import Hardware, settle_hardware
from mixlab.jobs.kinds import AnyData, kind_of
from mixlab.jobs.memory import (
    fit_memory,
    told_of_memory,
)
from mixlab.jobs.ranks import locked, made_by_first
from mixlab.jobs.run_tokenizer import at_home, changed_facts, repair_description
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.sitting import RunResult, run_sitting
from mixlab.jobs.standing import going_on, last_summary
from mixlab.parallel import ALONE, World
from mixlab.training import checkpoint as checkpoints
from mixlab.training.length import Length
from mixlab.training.loop import Progress
from mixlab.training.mirrors import check_mirrors

RUNS = Path("runs")


def start_run(
    recipe: str | AnyRunConfig,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    screen: Screen | None = None,
    command: str | None = None,
    data: AnyData | None = None,
    world: World = ALONE,
) -> RunResult:
    """Train a recipe, a YAML file or a config into a new run folder.

    `data` is the config's prepared data, where the caller has it already; `world` the processes
    that train together, all of which make this call.

    Raises:
        LabError: anything that the user can set right, before compute is spent wherever possible.
    """
    screen = screen or PlainScreen()
    is_config = isinstance(recipe, RunConfig | RefineRunConfig)
    request = recipe if is_config else load_config(recipe, overrides)
    if run_dir is not None and world.is_first:
        RunDir(run_dir).refuse_taken()
    if request.train.bridge is not None:
        raise ConfigError(
            "train.bridge", to_tree(request.train.bridge), "nothing in a run that begins at step 0",
            "It belongs to a run made by `mixlab extend`. Set train.bridge=null to train this "
            "config from the beginning.",
        )  # fmt: skip
    check_mirrors(request.log.mirrors)
    hardware = settle_hardware(request.train, world)
    kind = kind_of(request)
    kind.require_memory(request, hardware)
    with world.first_goes_first():
        data = data or kind.prepare_data(request, screen)
    with told_of_memory(request):
        config = settle(fit_memory(request, hardware, screen), data, hardware)
    run = made_by_first(world, lambda: _create(run_dir, config.name))
    with locked(run, world):
        if world.is_first:
            run.write_text("config.yaml", dump_yaml(to_tree(config)))
            run.write_text("request.yaml", dump_yaml(to_tree(request)))
        return run_sitting(run, config, data, hardware, Progress(), None, screen, command)


def _create(run_dir: Path | None, name: str) -> RunDir:
    return RunDir.create_next(RUNS, name) if run_dir is None else RunDir.create(run_dir)


def resume_run(
    path: Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    at_step: int | None = None,
    screen: Screen | None = None,
    command: str | None = None,
    data: AnyData | None = None,
    world: World = ALONE,
) -> RunResult:
    """Go on with a run from its last checkpoint, or from that of `at_step`.

    A recipe or overrides may be given again, but must mean what the run was started with. `data` is
    the config's prepared data, where the caller has it already; `world` the processes that train
    together, however many they were before.

    Raises:
        RunError: no run, finished already, or a changed config; the differing keys are named.
        CheckpointError: the checkpoint is damaged; the newest good one is named.
    """
    screen = screen or PlainScreen()
    run = RunDir.open(path)
    with locked(run, world):
        config = decode_config(read_yaml(run.config_path))
        if recipe is not None or overrides:
            config = _as_given_again(run, config, recipe, overrides)
        summary = last_summary(run)
        if at_step is None and summary.get("status") in ("finished", "stopped early"):
            raise RunError(
                f"run {path}: is {summary['status']} at step {summary.get('steps')}, so there is "
                f"nothing to resume. Train it further with `mixlab extend {path} --steps N`."
            )
        check_mirrors(config.log.mirrors)
        hardware = settle_hardware(config.train, world)
        with world.first_goes_first():
            data = data or kind_of(config).prepare_data(at_home(config, run.path), screen)
        refuse_other_text(run, data)
        checkpoint = find_checkpoint(run, at_step)
        if checkpoint is not None:
            _refuse_edits(run, config, checkpoint)
        world.totals(0)  # all have read what the first changes now
        if world.is_first:
            if checkpoint is not None:
                repair_description(run, data, screen)
                screen.note(going_on(run, int(config.train.length.amount), checkpoint))
            _forget_the_end(run, at_step)
        progress = Progress(**checkpoint.state["progress"]) if checkpoint else Progress()
        return run_sitting(run, config, data, hardware, progress, checkpoint, screen, command)


def settle(request: AnyRunConfig, data: AnyData, hardware: Hardware) -> AnyRunConfig:
    """The config with device, precision and length decided; it reproduces the run."""
    length, kind = request.train.length, kind_of(request)
    timed = kind.seconds_per_step(request, data, hardware) if length.unit == "seconds" else None
    timed = hardware.world.tell(timed)
    n_steps = length.n_steps(request.tokens_per_step, kind.flops_per_token(request), timed)
    train = request.train.model_copy(
        update={
            "length": Length(n_steps, "steps"),
            "device": hardware.device.type,
            "precision": hardware.precision,
            "compile": hardware.compile,
        }
    )
    return decode_config({**to_tree(request), "train": to_tree(train)})


def find_checkpoint(run: RunDir, at_step: int | None) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from; None for a run that was stopped before its first.

    Raises:
        CheckpointError: it is damaged or was not kept; a damaged one is never passed over.
    """
    steps = checkpoints.steps(run.checkpoints_path)
    if at_step is None and not steps:
        return None
    step = steps[-1] if at_step is None else at_step
    if step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"--at-step {step}: expected the step of a kept checkpoint: {kept}.")
    return checkpoints.load(checkpoints.step_path(run.checkpoints_path, step), device="cpu")


def _as_given_again(
    run: RunDir, config: AnyRunConfig, recipe: str | None, overrides: Sequence[str]
) -> AnyRunConfig:
    """Hold a config that was given again against the one that the run was started with.

    Returns the run's config with what may change.
    """
    request_path = run.path / "request.yaml"
    before = read_yaml(request_path if request_path.exists() else run.config_path)
    again = override(before, overrides) if recipe is None else load_recipe(recipe, overrides)
    # `about` tells of overrides, which may well be left out when a run is resumed.
    before, again = {**before, "about": ""}, {**again, "about": ""}
    request = decode_config(again)
    changes = _that_count(diff(before, to_tree(request)))
    if changes:
        raise RunError(
            f"run {run.path}: cannot be resumed with another config. It differs in "
            f"{_listed(changes)}. Leave these out to resume, or start a new run with them."
        )
    train = config.train.model_copy(update={"parallel": request.train.parallel})
    return decode_config({**to_tree(config), "train": to_tree(train)})


def _that_count(changes: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Without those that say how ranks share the work, and not what comes of it."""
    return {path: change for path, change in changes.items() if path != "train.parallel"}


def _refuse_edits(run: RunDir, config: AnyRunConfig, checkpoint: checkpoints.Checkpoint) -> None:
    """Hold config.yaml against the config that the checkpoint was made with."""
    before = to_tree(decode_config(checkpoint.state["config"]))
    changes = _that_count(diff(before, to_tree(config)))
    if changes:
        raise RunError(
            f"run {run.path}: its config.yaml has changed since {checkpoint.path.name} was saved. "
            f"It differs in {_listed(changes)}. Undo these to resume, or start a new run with them."
        )


def _listed(changes: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{path}: {old!r} -> {new!r}" for path, (old, new) in changes.items())


def _forget_the_end(run: RunDir, at_step: int | None) -> None:
    """Drop what tells of later steps than those that the run goes on from.

    First the summary, or a kill would leave a run that calls itself finished; then the later
    checkpoints, which belong to logs that are about to be cut.
    """
    run.summary_path.unlink(missing_ok=True)
    if at_step is not None:
        folder = run.checkpoints_path
        checkpoints.prune(folder, [step for step in checkpoints.steps(folder) if step <= at_step])


def refuse_other_text(run: RunDir, data: AnyData) -> None:
    """A run goes on only with the very tokens that it began with."""
    before = run.read_json("data.json")
    if before is None:
        return
    if before.get("imported"):  # its weights bring a tokenizer, and have seen no text here yet
        facts = before.get("tokenizer")
        if isinstance(facts, dict) and facts.get("hash") == data.manifest["tokenizer"]["hash"]:
            return
    changed = changed_facts(before, data.manifest)
    if changed:
        raise RunError(
            f"run {run.path}: its text has changed since it began (data.json differs in "
            f"{', '.join(changed)}), so the run cannot be continued exactly. Restore the text, or "
            "start a new run."
        )
