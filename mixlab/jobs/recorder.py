"""What the training loop produces, written into the run folder; and read back on resume."""

from dataclasses import asdict
from typing import Any

from mixlab.core.config import to_tree
from mixlab.core.run_dir import RunDir
from mixlab.jobs.process import command_age_s
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import Session
from mixlab.training import checkpoint as checkpoints
from mixlab.training.background import BackgroundWriter, Groups
from mixlab.training.generators import collect_of_ranks, restore_of_rank, seed_rank
from mixlab.training.loop import Progress
from mixlab.training.mirrors import Mirrors
from mixlab.training.sharded_checkpoint import give_parts, is_in_parts, save_in_parts

Row = dict[str, Any]
LOGS = ("metrics.jsonl", "evals.jsonl")


class RunRecorder:
    """Appends figures, saves checkpoints, and tells the screen and the mirrors.

    Saves are written in the background: `settle` waits for the last one.

    Attributes:
        first_step_s: seconds from the start of the command to the first update's figures, of this
            sitting; None before that, and where the command's start is not known.
    """

    def __init__(
        self, run: RunDir, session: Session, screen: Screen, mirrors: Mirrors, n_steps: int
    ) -> None:
        self._run, self._session = run, session
        self._screen, self._mirrors, self._n_steps = screen, mirrors, n_steps
        self._writer = BackgroundWriter()
        self.first_step_s: float | None = None
        self._has_begun = False

    def metrics(self, row: Row) -> None:
        if not self._has_begun:
            self._has_begun, self.first_step_s = True, command_age_s()
        self._writer.check()  # a full disk should not be noticed a hundred updates late
        self._run.append("metrics.jsonl", row)
        self._mirrors.log(row["step"], row, group="train")
        rate = row.get("tokens_per_s")
        left = (self._n_steps - row["step"]) * row["tokens"] / row["step"]  # targets, about
        self._screen.training(row, self._n_steps, left / rate if rate else None)

    def evaluation(self, row: Row) -> None:
        self._run.append("evals.jsonl", row)
        self._mirrors.log(row["step"], row, group="validation")
        self._screen.evaluation(row, self._session.context)

    def checkpoint(self, progress: Progress, *, is_best: bool) -> None:
        """Begin to save: the state is copied now and written while training goes on."""
        state = {
            "progress": asdict(progress),
            "log_bytes": {name: self._run.jsonl_size(name) for name in LOGS},
            "config": to_tree(self._session.config),
        }

        def write(tensors: Groups) -> None:
            folder = self._run.checkpoints_path
            if is_in_parts(tensors):
                world = self._session.hardware.world
                save_in_parts(folder, progress.step, tensors, state, world)
            else:
                checkpoints.save(folder, progress.step, tensors, state)
            if is_best:
                checkpoints.write_best(folder, progress.step, progress.best_loss_nats)
            checkpoints.prune(folder, self._kept(progress))

        tensors = saved_tensors(self._session)
        if is_in_parts(tensors):
            write(tensors)  # here and now, as the other ranks write theirs
        else:
            self._writer.submit(tensors, write)

    def settle(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._writer.wait()

    def close(self) -> None:
        """Let a save that is under way end."""
        self._writer.close()

    def tidy(self, progress: Progress) -> None:
        """Do what a kill between a save and its aftermath left undone."""
        folder, best = self._run.checkpoints_path, progress.best_step
        saved = checkpoints.steps(folder)
        if progress.step not in saved:
            return
        if best in saved and progress.best_loss_nats is not None:
            checkpoints.write_best(folder, best, progress.best_loss_nats)
        checkpoints.prune(folder, self._kept(progress))

    def _kept(self, progress: Progress) -> set[int]:
        """Steps whose checkpoints stay: last, best, where the decay begins, and every k."""
        cfg = self._session.config
        decay_start = cfg.train.schedule.decay_start(self._n_steps)
        kept = {progress.step, decay_start}
        if progress.best_step is not None:
            kept.add(progress.best_step)
        every = cfg.checkpoint.keep_every
        if every is not None:
            saved = checkpoints.steps(self._run.checkpoints_path)
            kept.update(step for step in saved if step % every == 0)
        return kept


class FollowingRecorder:
    """What ranks other than the first do: they give their part of checkpoints, and say nothing."""

    first_step_s = None  # which the first rank knows

    def __init__(self, session: Session) -> None:
        self._session = session

    def metrics(self, row: Row) -> None: ...

    def evaluation(self, row: Row) -> None: ...

    def checkpoint(self, progress: Progress, *, is_best: bool) -> None:
        tensors = saved_tensors(self._session)
        if is_in_parts(tensors):
            give_parts(tensors, self._session.hardware.world)

    def settle(self) -> None: ...

    def close(self) -> None: ...

    def tidy(self, progress: Progress) -> None: ...


def saved_tensors(session: Session) -> Groups:
    """All that a checkpoint keeps in tensors, by group; every rank must call it."""
    tensors = {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_tensors(),
        **collect_of_ranks(session.hardware.world),
    }
    if session.ema is not None:
        tensors["ema"] = session.ema.state_tensors()
    carried = session.objective.state_tensors()
    if carried:
        tensors["objective"] = carried
    return tensors


def restore(run: RunDir, session: Session, checkpoint: checkpoints.Checkpoint | None) -> None:
    """Put model, optimizer, average, generators and logs where the checkpoint has them.

    Without a checkpoint the run begins again, with empty logs.
    """
    seed, world = session.config.seed, session.hardware.world
    if checkpoint is None:
        seed_rank(seed, world)  # whatever has been drawn since
        for name in LOGS if world.is_first else ():
            if run.jsonl_size(name):
                run.truncate_jsonl(name, 0)
        return
    checkpoints.load_module(session.model, checkpoint.tensors["model"])
    if "optimizer" not in checkpoint.tensors:  # imported weights, not trained here yet
        seed_rank(seed, world)
        return
    session.optimizer.load_state_tensors(checkpoint.tensors["optimizer"])
    if session.ema is not None:
        session.ema.load_state_tensors(checkpoint.tensors["ema"])
    session.objective.load_state_tensors(checkpoint.tensors.get("objective", {}))
    restore_of_rank(checkpoint.tensors, world, seed=seed, step=checkpoint.step)
    for name in LOGS if world.is_first else ():
        run.truncate_jsonl(name, checkpoint.state["log_bytes"][name])
