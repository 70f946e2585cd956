"""Train a run further, as a child run that records its parent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from mixlab.core.config import dump_yaml, read_yaml, to_tree
from mixlab.core.errors import CheckpointError, RunError
from mixlab.core.json_files import read_checked_lines
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import AnyRunConfig, decode_config
from mixlab.jobs.device import settle_hardware
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.ranks import locked, made_by_first
from mixlab.jobs.run_tokenizer import BASE, at_home
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.sitting import RunResult, run_sitting
from mixlab.jobs.train import refuse_other_text
from mixlab.parallel import ALONE, World
from mixlab.training import checkpoint as checkpoints
from mixlab.training.config import TrainConfig
from mixlab.training.length import Length
from mixlab.training.loop import Progress
from mixlab.training.schedule import Bridge, lr_factor

BRIDGE_FRAC = 0.1
"""Share of the added updates over which a lowered learning rate is led up again."""


class Start(NamedTuple):
    """Where a child begins, and at which learning rate."""

    step: int
    bridge: Bridge | None
    parent_lr: float  # of the parent's update before that step
    child_lr: float  # of the child's first update


def plan_extension(train: TrainConfig, saved_steps: list[int], n_steps: int) -> Start:
    """Choose the checkpoint to go on from so that the learning rate does not jump.

    The newest checkpoint at which parent and child have the same learning rate is taken, such as
    the one where a WSD schedule begins to decay. Where there is none, the last checkpoint is
    taken and a bridge leads from the parent's last rate to the child's schedule.
    """
    old_steps, lr = int(train.length.amount), train.optimizer.lr
    last = saved_steps[-1]
    if last == 0:  # imported weights: no update was made, so there is no rate to go on from
        first = lr * train.schedule.factor(0, n_steps)
        return Start(0, None, first, first)

    def parent(step: int) -> float:
        if train.bridge is not None and step <= train.bridge.from_step:
            return train.bridge.from_factor
        return lr_factor(train.schedule, train.bridge, max(step - 1, 0), old_steps)

    def child(step: int) -> float:
        return train.schedule.factor(min(step, n_steps - 1), n_steps)

    for step in reversed(saved_steps):
        # Before its first third, more of the parent would be thrown away than a bridge costs.
        if 3 * step >= old_steps and abs(parent(step) - child(step)) <= 1e-9:
            return Start(step, None, lr * parent(step), lr * child(step))
    length = max(1, round(BRIDGE_FRAC * (n_steps - last)))
    bridge = Bridge(from_step=last, from_factor=parent(last), n_steps=length)
    first = lr_factor(train.schedule, bridge, last, n_steps)
    return Start(last, bridge, lr * parent(last), lr * first)


def extend_run(
    path: Path,
    *,
    n_steps: int,
    run_dir: Path | None = None,
    screen: Screen | None = None,
    world: World = ALONE,
) -> RunResult:
    """Train the run at `path` to `n_steps` updates in total, in a new folder.

    `world` is the processes that train together, all of which make this call.

    Raises:
        RunError: no such run, it is not longer than before, it is being trained or has lost its
            figures, or the folder exists.
        CheckpointError: the parent's checkpoint is damaged.
    """
    screen = screen or PlainScreen()
    parent = RunDir.open(path)
    with world.first_goes_first(), at_rest(parent) if world.is_first else nullcontext():
        config = decode_config(read_yaml(parent.config_path))
        start, checkpoint = _choose_start(parent, config, n_steps)
        sizes = checkpoint.state["log_bytes"]
        logs = {name: read_checked_lines(parent.path / name, n) for name, n in sizes.items()}
    train = config.train.model_copy(
        update={"length": Length(n_steps, "steps"), "bridge": start.bridge}
    )
    child_config = decode_config({**to_tree(config), "train": to_tree(train)})
    named = path if path.name.strip(".") else path.resolve()  # "." has no name to build on
    child = RunDir(run_dir or named.with_name(f"{named.name}-to-{n_steps}"))
    if world.is_first:
        child.refuse_taken()
    hardware = settle_hardware(child_config.train, world)
    with world.first_goes_first():
        data = kind_of(child_config).prepare_data(at_home(child_config, parent.path), screen)
    refuse_other_text(parent, data)
    child = made_by_first(world, lambda: RunDir.create(child.path))
    screen.note(_explain(path, start, n_steps))
    progress = replace(
        Progress(**checkpoint.state["progress"]),
        best_loss_nats=None,
        best_step=None,
        evals_without_improvement=0,
    )
    with locked(child, world):
        if world.is_first:
            tree = to_tree(child_config)
            with whole_or_gone(child):
                child.write_text("request.yaml", dump_yaml(tree))
                child.write_json("parent.json", _parent_facts(parent, start, config))
                if (parent.path / BASE).is_file():
                    shutil.copyfile(parent.path / BASE, child.path / BASE)
                for name, text in logs.items():  # the child's figures begin with the parent's
                    child.write_text(name, text)
                # The child owns its first checkpoint, so that it can be resumed from its first
                # update.
                state = {**checkpoint.state, "progress": asdict(progress), "config": tree}
                checkpoints.save(child.checkpoints_path, start.step, checkpoint.tensors, state)
                # Last, since it makes the folder a run: without its first checkpoint it is none.
                child.write_text("config.yaml", dump_yaml(tree))
        return run_sitting(child, child_config, data, hardware, progress, checkpoint, screen, None)


def _choose_start(
    parent: RunDir, config: AnyRunConfig, n_steps: int
) -> tuple[Start, checkpoints.Checkpoint]:
    saved = checkpoints.steps(parent.checkpoints_path)
    if not saved:
        raise CheckpointError(f"run {parent.path}: has no checkpoint to go on from.")
    if n_steps <= saved[-1]:
        raise RunError(
            f"--steps {n_steps}: expected more than the {saved[-1]} updates that {parent.path} "
            "already has; it counts all updates, the parent's included."
        )
    start = plan_extension(config.train, saved, n_steps)
    return start, checkpoints.load(checkpoints.step_path(parent.checkpoints_path, start.step))


@contextmanager
def at_rest(parent: RunDir) -> Iterator[None]:
    """Refuse a parent that is being trained: its last step would not be what the child gets.

    A folder that this user may only read can be extended, though not locked.
    """
    with parent.lock() if os.access(parent.path, os.W_OK) else nullcontext():
        yield


@contextmanager
def whole_or_gone(child: RunDir) -> Iterator[None]:
    """Remove the new folder if anything fails while it is made, so that one can try again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(child.path, ignore_errors=True)
        raise


def _explain(path: Path, start: Start, n_steps: int) -> str:
    text = (
        f"Going on from step {start.step} of {path} to step {n_steps}. The learning rate was "
        f"{start.parent_lr:.3g} there and begins at {start.child_lr:.3g}"
    )
    if start.bridge is None:
        return text + "; the schedule simply goes on."
    return text + f"; {start.bridge.n_steps} updates lead it to the new schedule."


def _parent_facts(parent: RunDir, start: Start, config: AnyRunConfig) -> dict[str, Any]:
    return {
        "path": str(parent.path.resolve()),
        "name": config.name,
        "step": start.step,
        "parent_lr": start.parent_lr,
        "first_lr": start.child_lr,
        "bridge": to_tree(start.bridge) if start.bridge else None,
    }
