"""One sitting of training: from where a run stands until its end, a signal or an error."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from mixlab.core.config import to_tree
from mixlab.core.errors import LabError
from mixlab.core.provenance import command_line, environment
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import AnyRunConfig
from mixlab.jobs.court.session import kernels_of_run
from mixlab.jobs.device import Hardware, describe
from mixlab.jobs.finish import finish, finish_failed
from mixlab.jobs.kinds import AnyData, AnySession, kind_of
from mixlab.jobs.launched import command_as_launched
from mixlab.jobs.memory import forget_peak, is_out_of_memory, limit_memory, out_of_memory
from mixlab.jobs.recorder import FollowingRecorder, RunRecorder, restore
from mixlab.jobs.screen import Screen
from mixlab.jobs.signals import stop_on_signals
from mixlab.training import checkpoint as checkpoints
from mixlab.training.loop import NonFiniteLossError, Outcome, Progress, train
from mixlab.training.mirrors import MirroredRun, Mirrors


@dataclass(frozen=True)
class RunResult:
    """How a sitting ended."""

    run: RunDir
    status: str  # "finished", "stopped early" or "interrupted"
    summary: dict[str, Any]
    signal: int | None = None  # that ended it, if one did

    @property
    def is_told(self) -> bool:
        """Whether this process is the one that tells of it; other ranks have no summary."""
        return bool(self.summary)


def run_sitting(
    run: RunDir,
    config: AnyRunConfig,
    data: AnyData,
    hardware: Hardware,
    progress: Progress,
    checkpoint: checkpoints.Checkpoint | None,
    screen: Screen,
    command: str | None,
) -> RunResult:
    """Train from `progress` until the end, a signal or an error, in a folder that is locked."""
    limit_memory(config.train, hardware)
    with torch.random.fork_rng(hardware.gpus):
        # Before the model takes its memory.
        kernels = kernels_of_run(run, config, hardware, screen)
        hardware = hardware._replace(kernels=kernels)
        torch.manual_seed(config.seed)
        session = kind_of(config).open_session(config, data, hardware)
        world = hardware.world
        command = command or command_as_launched(command_line(sys.argv))
        if world.is_first:
            _record_start(run, session, command, progress)
            kind_of(config).check_before_training(run, session, screen)
        mirrors = _open_mirrors(run, session, progress, screen)
        n_steps = int(config.train.length.amount)
        recorder = (
            RunRecorder(run, session, screen, mirrors, n_steps)
            if world.is_first
            else FollowingRecorder(session)
        )
        plan = session.plan(n_steps)
        # The last thing before training: whatever runs in between could draw random numbers.
        restore(run, session, checkpoint)
        recorder.tidy(progress)
        for note in session.notes if progress.step == 0 else []:
            screen.note(note)

        def evaluate() -> dict[str, Any]:
            with screen.task("Measuring the validation loss", None):
                return session.evaluate()

        forget_peak(hardware.device)  # of trials and checks
        try:
            with stop_on_signals(screen.note) as stop:
                outcome = train(
                    session.objective,
                    session.optimizer,
                    session.ema,
                    plan,
                    progress,
                    evaluate=evaluate,
                    recorder=recorder,
                    is_stop_requested=lambda: world.any(stop()),
                    clock=time.monotonic,
                )
                recorder.settle()  # before anything says that the run has ended
        except (NonFiniteLossError, RuntimeError) as error:
            recorder.close()  # the last good checkpoint may still be on its way
            told = _told(run, session, error, command)
            if told is error:
                raise
            raise told from None
        finally:
            session.objective.close()
            recorder.close()
            mirrors.close()
        signal = stop.signal if outcome.status == "interrupted" else None
        summary = _concluded(run, session, outcome, command, screen, recorder.first_step_s)
        return RunResult(run, outcome.status, summary, signal)


def _concluded(
    run: RunDir,
    session: AnySession,
    outcome: Outcome,
    command: str,
    screen: Screen,
    first_step_s: float | None,
) -> dict[str, Any]:
    """Part with the other ranks and write what comes once; they have no summary."""
    world = session.hardware.world
    session = session.alone()
    world.leave()
    if not world.is_first:
        return {}
    conclude = kind_of(session.config).conclude
    return finish(
        run, session, outcome, command, screen, conclude=conclude, first_step_s=first_step_s
    )


def _told(run: RunDir, session: AnySession, error: Exception, command: str) -> Exception:
    """The error as the user is told of it, which the run folder keeps; a defect as it is."""
    if isinstance(error, NonFiniteLossError):
        told: LabError = _with_way_out(run, error)
    elif is_out_of_memory(error):
        told = out_of_memory(session.config, error)
    else:
        return error
    if session.hardware.world.is_first:
        finish_failed(run, session, str(told), command)
    return told


def _open_mirrors(run: RunDir, session: AnySession, progress: Progress, screen: Screen) -> Mirrors:
    config = session.config
    return Mirrors.open(
        config.log.mirrors if session.hardware.world.is_first else (),
        MirroredRun(
            name=run.name, path=run.path, config=to_tree(config), is_resumed=progress.step > 0
        ),
        warn=_keep(session.notes, screen),
    )


def _keep(notes: list[str], screen: Screen) -> Callable[[str], None]:
    """Tell a warning to the person at the screen and to the reader of the report."""

    def warn(message: str) -> None:
        notes.append(message)
        screen.note(message)

    return warn


def _record_start(run: RunDir, session: AnySession, command: str, progress: Progress) -> None:
    hardware = session.hardware
    device = {**describe(hardware.device), "n_ranks": hardware.world.size}
    facts = environment(command, {**device, "optimizer": session.optimizer.kernel})
    if progress.step == 0 or not run.environment_path.exists():
        run.write_json("environment.json", facts)
        run.write_json("data.json", session.data.manifest)
        session.save_assets(run)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    run.append(
        "sittings.jsonl", {"from_step": progress.step, "started": started, "environment": facts}
    )


def _with_way_out(run: RunDir, error: NonFiniteLossError) -> NonFiniteLossError:
    """The error with the last good checkpoint and what to try named."""
    good = checkpoints.newest_good(run.checkpoints_path)
    where = "there is no checkpoint yet"
    if good is not None:
        where = f"the last good checkpoint is {good}"
    text = (
        f"{error} Training stopped; {where}. Try a lower train.optimizer.lr, a longer "
        "train.schedule.warmup_steps, or train.precision=fp32."
    )
    return NonFiniteLossError(text)
