"""The driver of a study: keeps the queue filled and workers alive until nothing is wanted.

A driver does no work itself and keeps nothing that is not on the disk, so it may be killed at any
moment and started again. Of several drivers of one folder, the one with the lease `driver/` acts;
the others look on and take over when it ends.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from mixlab.core.errors import LabError
from mixlab.studies.executors.base import Executor
from mixlab.studies.job_store import Job, JobStore
from mixlab.studies.lease import BEAT_S, Lease, Observer, read_state, require_links
from mixlab.studies.progress import Snapshot, StudyScreen
from mixlab.studies.worker import DISK_FULL, OTHER_CODE

POLL_S = 0.3
QUICK_S = 20.0
"""A worker that ends sooner than that without a job done counts as failing to start."""
MAX_QUICK_DEATHS, RETRY_S = 5, 1.0
GRACE_S, PATIENCE_S = 15.0, 600.0
"""How long workers may take to end by themselves, and after a signal."""


class Wanted(Protocol):
    """One run that is wanted."""

    @property
    def job(self) -> Job: ...

    @property
    def address(self) -> str: ...


class InterruptedStudyError(Exception):
    """Somebody asked the driver to stop; workers have saved and ended."""

    def __init__(self, signal: int | None) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class _Slot(NamedTuple):
    started_at: float
    n_settled: int  # jobs that were settled when it was started


class Driver:
    """Drives one folder; use as a context, which takes and returns the driver's lease."""

    def __init__(
        self,
        folder: Path,
        open_executor: Callable[[], Executor],
        screen: StudyScreen,
        *,
        stop: Callable[[], int | None] = lambda: None,
        observer: Observer | None = None,
        poll_s: float = POLL_S,
        beat_s: float = BEAT_S,
    ) -> None:
        self.folder, self.store, self.screen = folder, JobStore(folder), screen
        self._open_executor, self._executor = open_executor, None
        self._stop, self._observer = stop, observer or Observer()
        self._poll_s, self._beat_s = poll_s, beat_s
        self._lease: Lease | None = None
        self._slots: dict[int, _Slot] = {}
        self._settled: set[str] = set()
        self._quick_deaths = 0
        self._retry_at = 0.0

    # --- the right to act -------------------------------------------------------------------

    def acquire(self, look_on: Callable[[], None] = lambda: None) -> None:
        """Wait for the driver's lease; `look_on` is called while another driver has it.

        Raises:
            InterruptedStudyError: asked to stop while waiting.
            LabError: the folder cannot be written.
        """
        place = self.folder / "driver"
        try:
            place.mkdir(parents=True, exist_ok=True)
            require_links(place)
            has_said = False
            while True:
                self._lease = self._observer.claim(place)
                if self._lease is not None:
                    self._lease.keep(every_s=self._beat_s)
                    return
                if not has_said:
                    holder = read_state(place)
                    who = holder.holder if holder else {}
                    self.screen.note(
                        f"Another process drives {self.folder} already "
                        f"(host {who.get('host')}, process {who.get('pid')}). This one looks on, "
                        "and takes over when that one ends."
                    )
                    has_said = True
                look_on()
                self._raise_if_stopped()
                time.sleep(self._poll_s)
        except OSError as error:
            raise LabError(f"{self.folder} cannot be written: {error.strerror}.") from None

    def __enter__(self) -> "Driver":
        if self._lease is None:
            self.acquire()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            self._end_workers(is_finished=error is None)
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    # --- the loop -----------------------------------------------------------------------------

    def drive(
        self,
        wanted: Callable[[], Sequence[Wanted]],
        look: Callable[[], Snapshot],
        *,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Run all that is wanted, until everything is settled.

        `wanted` is asked again after every job that is settled, `settled` is told of it.

        Raises:
            InterruptedStudyError: asked to stop; workers have saved.
            LabError: no worker can go on, such as with a full disk.
        """
        queued: list[str] | None = None
        n_before = -1
        while True:
            entries = wanted()
            waiting = self._waiting(entries)
            if waiting != queued:
                self.store.write_queue(waiting, is_open=True)
                queued = waiting
            n_settled = len({entry.address for entry in entries}) - len(waiting)
            if n_settled != n_before:
                n_before = n_settled
                settled()
            if not waiting:
                return
            self._keep_workers(len(waiting), n_settled)
            self.screen.update(look())
            self._raise_if_stopped()
            time.sleep(self._poll_s)

    def _waiting(self, entries: Sequence[Wanted]) -> list[str]:
        """The addresses that are not settled; new jobs are written down."""
        waiting: dict[str, None] = {}
        for entry in entries:
            if entry.address in self._settled or entry.address in waiting:
                continue
            if self.store.add(entry.job, entry.address).is_settled():
                self._settled.add(entry.address)
            else:
                waiting[entry.address] = None
        return list(waiting)

    def _raise_if_stopped(self) -> None:
        number = self._stop()
        if number is not None:
            raise InterruptedStudyError(number)

    @property
    def n_workers(self) -> int:
        """Workers that may run at once."""
        return 1 if self._executor is None else self._executor.n_workers

    def _keep_workers(self, n_waiting: int, n_settled: int) -> None:
        if self._executor is None:
            self._executor = self._open_executor()
        executor, now = self._executor, time.monotonic()
        states = executor.poll()
        for slot in range(min(executor.n_workers, n_waiting)):
            if slot in self._slots and states.get(slot) is None:
                continue
            if slot in self._slots:
                self._judge(slot, states[slot], n_settled)
            if now < self._retry_at:
                continue
            executor.start(slot)
            self._slots[slot] = _Slot(now, n_settled)

    def _judge(self, slot: int, status: int | None, n_settled: int) -> None:
        """A worker has ended while there is work: start another, or give up with its words."""
        begun = self._slots.pop(slot)
        assert self._executor is not None
        if status == DISK_FULL:
            raise LabError(
                f"{self.folder}: the disk is full. Free some space and start the same command "
                "again; everything that was finished is kept."
            )
        if status == OTHER_CODE:
            raise LabError(
                "the code of mixlab has changed since this was started, so its runs would not be "
                "comparable. Start the same command again: it decides anew what counts."
            )
        is_quick = time.monotonic() - begun.started_at < QUICK_S and n_settled == begun.n_settled
        self._quick_deaths = self._quick_deaths + 1 if is_quick and status else 0
        if self._quick_deaths > MAX_QUICK_DEATHS * self._executor.n_workers:
            words = self._executor.last_words(slot)
            raise LabError(
                f"workers end as soon as they are started (exit status {status}). The last words "
                f"of worker {slot}:\n{words or '(nothing)'}"
            )
        if self._quick_deaths > self._executor.n_workers:
            self._retry_at = time.monotonic() + RETRY_S

    def _end_workers(self, *, is_finished: bool) -> None:
        """Wait for the workers' end: by themselves if the work is done, else by a signal."""
        executor = self._executor
        assert executor is not None
        with suppress(LabError):
            self.store.write_queue([], is_open=False)
        start, is_asked = time.monotonic(), False
        while any(status is None for status in executor.poll().values()):
            waited = time.monotonic() - start
            if not is_asked and (not is_finished or waited > GRACE_S):
                executor.stop()
                is_asked = True
            if self._stop_again() or waited > PATIENCE_S:
                executor.stop(at_once=True)
            time.sleep(min(self._poll_s, 0.1))

    def _stop_again(self) -> bool:
        """Whether the person asks a second time."""
        again = getattr(self._stop, "is_urgent", None)
        return bool(again and again())
