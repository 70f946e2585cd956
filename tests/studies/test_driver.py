"""Drivers: one acts, others look on; full disks, broken workers, edits, budgets and signals."""

import json
import os
import signal
import threading
import time

import pytest
from stub_study import (
    BEAT_S,
    POLL_S,
    ForkExecutor,
    InProcessExecutor,
    drive,
    fork,
    start_stub,
    stub_design,
)

from mixlab.core.errors import LabError
from mixlab.studies.driver import Driver, InterruptedStudyError
from mixlab.studies.lease import Observer
from mixlab.studies.progress import Silent
from mixlab.studies.rows import RowCache
from mixlab.studies.study import Stop, drive_design, refuse_foreign, refuse_overspending
from mixlab.studies.worker import DISK_FULL, OTHER_CODE


class Told(Silent):
    """A screen that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def design():
    return stub_design(arms=1, n_seeds=2, tune=None)


@pytest.fixture
def folder(tmp_path, design):
    start_stub(tmp_path / "stub", design)
    return tmp_path / "stub"


def results(folder):
    return json.loads((folder / "results.json").read_text())


def driver_of(folder, executor=None, screen=None, **settings):
    executor = executor or InProcessExecutor(folder)
    return Driver(
        folder, lambda: executor, screen or Told(), poll_s=POLL_S, beat_s=BEAT_S, **settings
    )


# --- two drivers ----------------------------------------------------------------------------------


def test_a_second_driver_looks_on_and_takes_over(folder):
    """It runs nothing while the first lives; when that is killed, it finishes the study."""
    first = fork(folder, lambda: drive(folder, ForkExecutor(folder)))
    deadline = time.monotonic() + 30
    while Observer().is_free(folder / "driver") and time.monotonic() < deadline:
        time.sleep(0.002)
    told, looks = Told(), []
    second = driver_of(folder, screen=told)

    def look_on():
        looks.append(1)
        if len(looks) == 3:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)

    second.acquire(look_on)
    with second:
        drive_design(second, json.loads((folder / "study.json").read_text()))
    assert results(folder)["is_complete"] and len(results(folder)["jobs"]) == 2
    assert len(looks) >= 3 and "drives" in told.notes[0] and str(first) in told.notes[0]


def test_two_drivers_at_once_run_nothing_twice(folder):
    """Even if both were to act, since they want the same runs and leases decide who makes one."""
    stub = json.loads((folder / "study.json").read_text())
    errors = []

    def act(driver):
        try:
            driver.drive(RowCache(folder, stub).refresh, lambda: None)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=act, args=(driver_of(folder),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(p.name for p in (folder / "jobs").glob("*/done")) == ["done"] * 2
    assert all(len(list(p.glob("lease-*"))) == 1 for p in (folder / "jobs").iterdir())


# --- when no worker can go on ---------------------------------------------------------------------


class Ending(InProcessExecutor):
    """Workers that end with a status and do nothing."""

    def __init__(self, folder, status):
        super().__init__(folder)
        self.end, self.n_started = status, 0

    def start(self, slot):
        self.status, self.n_started = self.end, self.n_started + 1


@pytest.mark.parametrize(
    "status, words",
    [
        (DISK_FULL, "the disk is full. Free some space"),
        (OTHER_CODE, "code of mixlab has changed"),
        (1, "as soon as they are started .*the last words"),
        (-9, "as soon as they are started"),
    ],
)
def test_workers_that_cannot_go_on_end_the_study_in_words(folder, monkeypatch, status, words):
    monkeypatch.setattr("mixlab.studies.driver.RETRY_S", 0.01)
    executor = Ending(folder, status)
    with pytest.raises(LabError, match="(?s)" + words), driver_of(folder, executor) as driver:
        drive_design(driver, json.loads((folder / "study.json").read_text()))
    assert executor.n_started < 20
    assert Observer().is_free(folder / "driver"), "the next command can start at once"
    drive(folder, InProcessExecutor(folder))
    assert results(folder)["is_complete"]


def test_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(LabError, match="cannot be written"):
        driver_of(file / "study").acquire()


def test_a_folder_of_another_study_is_refused(folder):
    refuse_foreign(folder, "stub")
    refuse_foreign(folder / "new", "anything")
    with pytest.raises(LabError, match="holds the study 'stub'"):
        refuse_foreign(folder, "other")
    (folder / "study.json").unlink()  # as if stopped while its updates were timed
    for name in ("study.yaml", "results.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    refuse_foreign(folder, "stub")
    (folder / "config.yaml").write_text("a run, or anything else")
    with pytest.raises(LabError, match=r"holds other content and no study, such as config\.yaml"):
        refuse_foreign(folder, "stub")


# --- stopping -------------------------------------------------------------------------------------


def test_a_stop_ends_workers_and_the_next_run_goes_on(folder):
    stop = Stop()
    stop.signals.append(signal.SIGINT)
    with (
        pytest.raises(InterruptedStudyError) as stopped,
        driver_of(folder, ForkExecutor(folder), stop=stop) as driver,
    ):
        drive_design(driver, json.loads((folder / "study.json").read_text()))
    assert stopped.value.signal == signal.SIGINT
    drive(folder, InProcessExecutor(folder))
    assert results(folder)["is_complete"] and len(results(folder)["jobs"]) == 2


# --- edits and budgets ----------------------------------------------------------------------------


def test_results_of_an_edited_arm_are_kept_but_not_counted(folder, design):
    drive(folder, InProcessExecutor(folder))
    before = results(folder)
    design["arms"][0]["config"]["train"]["optimizer"]["lr"] = 0.002
    design["arms"][0]["lr"] = 0.002
    start_stub(folder, design)
    told = Told()
    with driver_of(folder, screen=told) as driver:
        drive_design(driver, design)
    after = results(folder)
    assert not set(before["jobs"]) & set(after["jobs"]) and len(after["jobs"]) == 2
    assert {entry["job"] for entry in after["set_aside"]} == set(before["jobs"])
    assert after["cost"]["runs"] == 2
    assert told.notes == [
        "Kept but not counted: 2 results made for an arm, rate or seed as it was before the study "
        "was edited."
    ]
    assert all((folder / "jobs" / address / "done").is_dir() for address in before["jobs"])
    design["arms"][0]["config"]["train"]["optimizer"]["lr"] = 0.001
    design["arms"][0]["lr"] = 0.001
    start_stub(folder, design)
    executor = Ending(folder, 1)
    with driver_of(folder, executor) as driver:
        drive_design(driver, design)
    assert executor.n_started == 0, "edited back, the old results count again"
    assert set(results(folder)["jobs"]) == set(before["jobs"])


@pytest.mark.parametrize("key, reason", [("code", "other code"), ("data", "other text")])
def test_results_of_other_code_or_text_are_set_aside(folder, design, key, reason):
    drive(folder, InProcessExecutor(folder))
    if key == "code":
        design["code"]["digest"] = "newer"
    else:
        design["arms"][0]["data"] = "other"
    start_stub(folder, design)
    drive(folder, InProcessExecutor(folder))
    assert [reason in entry["reason"] for entry in results(folder)["set_aside"]] == [True, True]


def test_a_further_seed_costs_one_run(folder, design):
    drive(folder, InProcessExecutor(folder))
    before = results(folder)
    design["seeds"] = [1, 2, 3]
    start_stub(folder, design)
    drive(folder, InProcessExecutor(folder))
    assert set(before["jobs"]) < set(results(folder)["jobs"]) and len(results(folder)["jobs"]) == 3
    assert not results(folder)["set_aside"]


def test_a_budget_that_is_spent_ends_the_study(folder, design):
    design["budget"]["total"] = "100 tokens"  # a run takes 96
    start_stub(folder, design)
    with pytest.raises(LabError, match=r"budget.total = 100 tokens: is spent \(192 tokens"):
        drive_one_by_one(folder, design)
    design["budget"]["total"] = "1000 tokens"
    cache = RowCache(folder, design)
    cache.refresh()
    refuse_overspending(design, cache)


def drive_one_by_one(folder, design):
    design["seeds"] = [1, 2, 3, 4]
    start_stub(folder, design)
    with driver_of(folder) as driver:
        drive_design(driver, design)
