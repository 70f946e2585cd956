"""`mixlab study worker FOLDER`: takes jobs from a study folder until none is left.

Every executor starts this one command. It is idempotent: any number of workers may run at any time,
be killed, and be started again.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from mixlab.core.errors import LabError, MemoryConfigError
from mixlab.core.json_files import read_lines, to_plain
from mixlab.jobs.screen import status_text
from mixlab.studies.job_store import Claim, Failure, JobStore, is_disk_full
from mixlab.studies.lease import BEAT_S, LeaseLostError, Observer

DISK_FULL, OTHER_CODE = 28, 29
"""Exit statuses that end the whole study: no other worker would fare better."""
POLL_S = 0.5
ORPHAN_S = 120.0
"""Time without work and without a driver after which a worker ends."""

RunJob = Callable[[Claim, "JobScreen"], dict[str, Any]]
"""Does a claimed job and returns its result."""


class StopWorkerError(BaseException):
    """The worker was asked to end; not an Exception, so that no job takes it for its own."""


class JobScreen:
    """The screen of a job nobody looks at: signs of life for the lease, progress for the driver."""

    def __init__(self, claim: Claim, is_stopping: Callable[[], bool], clock=time.monotonic) -> None:
        self._claim, self._is_stopping, self._clock = claim, is_stopping, clock
        self._written = -float("inf")
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self._tell({"doing": description, "share": done / total if total else None})

        self._tell({"doing": description}, now=True)
        yield advance

    def note(self, message: str) -> None:
        self.notes.append(message)
        self._tell({"doing": message})

    def training(self, row: dict[str, Any], n_steps: int, eta_s: float | None) -> None:
        self._tell(
            {
                "doing": status_text(row, n_steps, eta_s),
                "share": row["step"] / n_steps,
                "eta_s": eta_s,
            }
        )

    def evaluation(self, row: dict[str, Any], context: dict[str, Any]) -> None:
        self._tell({"doing": "Measuring the validation loss"})

    def _tell(self, what: dict[str, Any], *, now: bool = False) -> None:
        self._claim.lease.show_life()
        if self._is_stopping():
            raise StopWorkerError
        if now or self._clock() - self._written >= 1.0:
            self._written = self._clock()
            path = self._claim.work / "progress.json"
            with suppress(OSError):  # what a driver shows is not worth a run, nor a sync
                path.with_suffix(".tmp").write_text(json.dumps(to_plain(what)))
                path.with_suffix(".tmp").replace(path)


class Worker:
    """One process that takes jobs."""

    def __init__(
        self,
        folder: Path,
        run_job: RunJob,
        *,
        observer: Observer | None = None,
        poll_s: float = POLL_S,
        beat_s: float = BEAT_S,
        hang_s: float | None = None,
        orphan_s: float = ORPHAN_S,
        parent: int | None = None,
    ) -> None:
        self.store, self._run_job = JobStore(folder), run_job
        self._observer = observer or Observer()
        self._poll_s, self._beat_s, self._hang_s = poll_s, beat_s, hang_s
        self._orphan_s, self._parent = orphan_s, parent
        self._is_asked_to_stop = False

    def is_stopping(self) -> bool:
        """Whether a signal came, or the driver that started this process is gone."""
        return self._is_asked_to_stop or (self._parent is not None and os.getppid() != self._parent)

    def work(self) -> int:
        """Take jobs until the queue is closed and empty; returns the exit status."""

        def ask(number: int, frame: Any) -> None:
            self._is_asked_to_stop = True

        previous = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _loop(self) -> int:
        idle_since = time.monotonic()
        while not self.is_stopping():
            addresses, is_open = self.store.queue()
            try:
                claim = self.store.claim(addresses, self._observer)
            except (OSError, LabError) as error:
                if is_disk_full(error):
                    return _say(DISK_FULL, f"the disk is full: {error}")
                raise
            if claim is not None:
                status = self._do(claim)
                if status is not None:
                    return status
                idle_since = time.monotonic()
                continue
            if not is_open:
                return 0
            if time.monotonic() - idle_since > self._orphan_s and self._is_orphan():
                return 0
            time.sleep(self._poll_s)
        return 0

    def _is_orphan(self) -> bool:
        """Whether no driver is left that could want more."""
        return self._observer.is_free(self.store.folder / "driver")

    def _do(self, claim: Claim) -> int | None:
        """One job; an exit status where the worker must end with it."""
        claim.lease.keep(every_s=self._beat_s, hang_s=self._hang_s)
        try:
            result = self._run_job(claim, JobScreen(claim, self.is_stopping))
            claim.finish(result)
            return None
        except (LeaseLostError, StopWorkerError):
            claim.lease.release()
            return None
        except BaseException as error:
            if not claim.lease.is_mine():  # its folder was taken away: not the job's fault
                claim.lease.release()
                return None
            if is_disk_full(error):
                claim.lease.release()
                return _say(DISK_FULL, f"the disk is full: {error}")
            failure = describe_failure(error)
            if failure is None:
                claim.lease.release()
                if isinstance(error, KeyboardInterrupt):
                    self._is_asked_to_stop = True
                    return None
                raise
            try:
                claim.fail(failure._replace(spent=_spent(claim.work)))
            except LabError as full:
                if not is_disk_full(full):
                    raise
                claim.lease.release()
                return _say(DISK_FULL, str(full))
            return None


def describe_failure(error: BaseException) -> Failure | None:
    """What went wrong with a job; None for what is no failure of the job."""
    if not isinstance(error, Exception):
        return None
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryConfigError):
        return Failure("out of memory", f"{text} Or run fewer workers per device.")
    if (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "error: out of memory" in text
    ):
        return Failure(
            "out of memory",
            f"{text.splitlines()[0] if text else name}. Lower train.micro_batch_size, or the "
            "number of workers per device.",
        )
    if name == "NonFiniteLossError":
        return Failure("diverged", text)
    if isinstance(error, LabError):
        return Failure("refused", text)
    return Failure("bug", f"{name}: {text}", traceback.format_exc())


def _spent(work: Path) -> dict[str, float]:
    """What a run that failed had cost until then."""
    with suppress(LabError):
        rows = read_lines(work / "run" / "metrics.jsonl")
        if rows:
            last = rows[-1]
            return {
                "tokens": last["tokens"], "flops": last["flops"], "seconds": last["elapsed_s"]
            }  # fmt: skip
    return {}


def _say(status: int, message: str) -> int:
    print(f"mixlab study worker: {message}", file=sys.stderr, flush=True)
    return status


# --- the process ----------------------------------------------------------------------------------


class OtherCodeError(BaseException):
    """A job was planned with other code than this process runs."""


def run_real_job() -> RunJob:
    """What a worker does with a claimed job: train or profile it. Loads torch."""
    from mixlab.studies.address import code_version
    from mixlab.studies.profile_job import profile_job
    from mixlab.studies.training_job import DataCache, InterruptedJobError, train_job

    cache, code = DataCache(), code_version()["digest"]

    def run(claim: Claim, screen: JobScreen) -> dict[str, Any]:
        job = claim.folder.job()
        if job.code != code:
            raise OtherCodeError("the code of mixlab has changed since the study was started")
        if job.kind != "train":
            return profile_job(job, screen, cache)
        try:
            return train_job(job, claim.work, screen, cache)
        except InterruptedJobError:
            raise StopWorkerError from None

    return run


def worker_process(folder: Path, *, slot: int, parent: int | None, hang_s: float) -> int:
    """The body of `mixlab study worker`; returns its exit status.

    A slot stands for a device: where a worker of an earlier driver still saves, wait for its end.
    """
    store = JobStore(folder)
    lock = filelock.FileLock(folder / "workers" / f"{slot}.lock")
    (folder / "workers").mkdir(parents=True, exist_ok=True)
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except filelock.Timeout:
            is_orphan = parent is not None and os.getppid() != parent
            if is_orphan or not store.queue()[1]:
                return 0
    try:
        return Worker(folder, run_real_job(), parent=parent, hang_s=hang_s).work()
    except OtherCodeError as error:
        return _say(OTHER_CODE, str(error))
    finally:
        lock.release()
