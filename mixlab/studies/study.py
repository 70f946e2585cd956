"""`mixlab study run`: from a study file to results.json, however often it is killed on the way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json
from mixlab.core.units import count, duration
from mixlab.studies.design import Design, profile_jobs, take_profiles, to_json
from mixlab.studies.driver import Driver
from mixlab.studies.executors import Executor, open_executor
from mixlab.studies.job_store import Job
from mixlab.studies.layout import link_runs, write_design
from mixlab.studies.prepare_study import devices
from mixlab.studies.progress import Snapshot, StudyScreen, set_aside_lines, snapshot
from mixlab.studies.results import collect
from mixlab.studies.rounds import Entry
from mixlab.studies.rows import RowCache
from mixlab.studies.watch import label_of, look_at, write_results
from mixlab.training.length import Length

OpenExecutor = Callable[[], Executor]


@dataclass(frozen=True)
class Outcome:
    """How a study ended."""

    folder: Path
    results: dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """A run whose only purpose is to time an update."""

    arm: str
    job: Job
    address: str


class Stop:
    """Ctrl-C and SIGTERM: the first asks, the second insists."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> int | None:
        return self.signals[0] if self.signals else None

    def is_urgent(self) -> bool:
        """Whether it was asked a second time."""
        return len(self.signals) > 1


@contextmanager
def stop_on_signals(tell: Callable[[str], None]) -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM inside the block."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        stop.signals.append(number)
        if len(stop.signals) == 1:
            tell("Stopping: workers save and end; Ctrl-C again ends them at once.")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def drive_study(
    found: Design,
    folder: Path,
    asked: dict[str, Any],
    study_screen: StudyScreen,
    *,
    executor: OpenExecutor | None = None,
    **settings: Any,
) -> Outcome:
    """Run a design to its end. `settings` go to the driver."""
    refuse_foreign(folder, found.study.name)
    open_workers = executor or executor_for(found, folder)
    with stop_on_signals(study_screen.note) as stop:
        driver = Driver(folder, open_workers, study_screen, stop=stop, **settings)
        driver.acquire(lambda: _look_on(folder, study_screen))
        with driver:
            timings = profile_jobs(found)
            if timings:
                take_profiles(found, _drive_timings(driver, timings))
            content = to_json(found)
            write_design(folder, content, asked)
            results = drive_design(driver, content)
            return Outcome(folder, results)


_OWN = {"driver", "jobs", "workers", "queue.json", "study.yaml"}
"""What a study may have left that was stopped before it wrote study.json."""


def refuse_foreign(folder: Path, name: str) -> None:
    """A folder holds one study: another one's runs would all be set aside.

    Raises:
        LabError: the folder holds a study of another name, or something else.
    """
    before = read_json(folder / "study.json")
    if before is None and folder.is_dir():
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        others = sorted(there - _OWN)
        if others:
            raise LabError(
                f"--folder {folder}: holds other content and no study, such as {others[0]}: "
                "expected an empty folder, a name that is free, or the folder of this study."
            )
    if isinstance(before, dict) and before.get("name") not in (None, name):
        raise LabError(
            f"{folder}: holds the study {before['name']!r} already. Choose another --folder, or "
            "give the study file that name."
        )


def executor_for(found: Design, folder: Path) -> OpenExecutor:
    """How to open the executor when there is something to run."""
    n_gpus, threads = devices(found)
    return lambda: open_executor(found.study.runner, folder, n_gpus=n_gpus, threads=threads)


def drive_design(driver: Driver, content: dict[str, Any]) -> dict[str, Any]:
    """Run all that study.json wants; returns results.json, which is written, too."""
    folder, screen = driver.folder, driver.screen
    cache = RowCache(folder, content)
    for line in set_aside_lines(collect(folder, cache)["set_aside"]):
        screen.note(line)
    labels: dict[str, str] = {}

    def wanted() -> list[Entry]:
        entries = cache.refresh()
        for entry in entries:
            labels.setdefault(entry.address, label_of(entry))
        refuse_overspending(content, cache)
        return entries

    def look() -> Snapshot:
        n_expected = cache.rounds.n_expected(cache.rows)
        return snapshot(driver.store, labels, cache.rows, n_expected, n_workers=driver.n_workers)

    def settled() -> None:
        link_runs(folder, write_results(folder, cache))

    driver.drive(wanted, look, settled=settled)
    return write_results(folder, cache)


def refuse_overspending(content: dict[str, Any], cache: RowCache) -> None:
    """End the study where its total budget is spent.

    Raises:
        LabError: it is; what is finished stays.
    """
    total = content["budget"]["total"]
    if total is None:
        return
    limit = Length.parse(total)
    spent = sum(row.get(limit.unit) or 0 for row in cache.rows.values())
    if spent >= limit.amount:
        show = duration if limit.unit == "seconds" else count
        raise LabError(
            f"budget.total = {total}: is spent ({show(spent)} {limit.unit} in {len(cache.rows)} "
            "runs), and the study wants more. Raise it and run the study again, or ask for less: "
            "fewer arms, seeds, or no tuning. What is finished is kept."
        )


def _drive_timings(driver: Driver, jobs: dict[str, Job]) -> dict[str, dict[str, Any]]:
    """Time the updates of every arm; equal arms share a timing.

    Raises:
        LabError: an arm cannot be run at all; its error is told.
    """
    timings = [Timing(name, job, job.address) for name, job in jobs.items()]
    store = driver.store
    labels = {timing.address: f"timing {timing.arm}" for timing in timings}

    def look() -> Snapshot:
        settled = {
            address: {"status": "done" if store[address].is_done() else "failed"}
            for address in labels
            if store[address].is_settled()
        }
        return snapshot(store, labels, settled, len(labels), phase="timings")

    driver.drive(lambda: timings, look)
    results = {}
    for timing in timings:
        result = store[timing.address].result()
        if result is None:
            error = store[timing.address].failures()[-1]
            raise LabError(
                f"arm {timing.arm!r}: its updates cannot be timed: {error['kind']}: "
                f"{error['message']}"
            )
        results[timing.arm] = result
    return results


def _look_on(folder: Path, screen: StudyScreen) -> None:
    """Show how far the driver in charge is."""
    content = read_json(folder / "study.json")
    if content is not None:
        screen.update(look_at(folder, content))
