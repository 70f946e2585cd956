"""Workers: what counts as a failure, what is tried again, and what a full disk or a hang does."""

import errno
import json
import os
import signal

import pytest
from stub_study import POLL_S, NonFiniteLossError, start_stub, stub_design, stub_job, work

from mixlab.core.errors import ConfigError, MemoryConfigError, RunError
from mixlab.core.json_files import write_json
from mixlab.studies import job_store, worker
from mixlab.studies.job_store import MAX_DEATHS, JobStore, is_disk_full
from mixlab.studies.lease import Observer
from mixlab.studies.rounds import Rounds
from mixlab.studies.worker import DISK_FULL, StopWorkerError, Worker, describe_failure


@pytest.fixture
def store(tmp_path):
    """A queue of one arm's two seeds, closed."""
    design = stub_design(arms=1, n_seeds=2, tune=None)
    start_stub(tmp_path, design)
    store = JobStore(tmp_path)
    entries = Rounds(design).entries({})
    for entry in entries:
        store.add(entry.job)
    store.write_queue([entry.address for entry in entries], is_open=False)
    return store


def failing(error: BaseException, times: int = 10**9):
    """A job that raises `error` so many times before it works."""
    left = [times]

    def job(claim, screen):
        if left[0]:
            left[0] -= 1
            raise error
        return stub_job(claim, screen)

    return job


def kinds(store):
    return [
        [failure["kind"] for failure in store[address].failures()] for address in store.addresses()
    ]


def test_a_worker_empties_the_queue_and_ends(store):
    assert work(store.folder) == 0
    assert all(store[address].is_done() for address in store.addresses())
    assert len(store.addresses()) == 2
    assert work(store.folder) == 0, "a second time there is nothing to do"


def test_a_failure_is_tried_once_more(store):
    assert work(store.folder, job=failing(RuntimeError("flaky"), times=1)) == 0
    assert sorted(kinds(store)) == [[], ["bug"]]
    assert all(store[address].is_done() for address in store.addresses())


def test_a_failure_that_comes_back_is_given_up_with_its_error(store):
    assert work(store.folder, job=failing(RuntimeError("always"))) == 0
    assert kinds(store) == [["bug", "bug"]] * 2
    failure = store[store.addresses()[0]].failures()[-1]
    assert failure["message"] == "RuntimeError: always" and "test_worker.py" in failure["detail"]
    assert all(store[address].is_settled() for address in store.addresses())


def test_divergence_is_a_result_and_not_tried_again(store):
    work(store.folder, job=failing(NonFiniteLossError("step 3: the loss is nan")))
    assert kinds(store) == [["diverged"]] * 2


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


@pytest.mark.parametrize(
    "error, kind",
    [
        (MemoryError(), "out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemory"), "out of memory"),
        (MemoryConfigError("train.batch_size", 8, "an update that fits"), "out of memory"),
        (ConfigError("model.d_model", 3, "an even number"), "refused"),
        (KeyError("x"), "bug"),
        (NonFiniteLossError("nan"), "diverged"),
    ],
)
def test_kinds_of_failure(error, kind):
    assert describe_failure(error).kind == kind


def test_a_signal_is_no_failure():
    assert describe_failure(KeyboardInterrupt()) is None
    assert describe_failure(StopWorkerError()) is None


def test_a_kill_for_lack_of_memory_is_told_apart(store, monkeypatch):
    """The system killed the holder: its counter of such kills has grown since the claim."""
    address = store.addresses()[0]
    monkeypatch.setattr(job_store, "oom_kills", lambda: 4)
    pid = os.fork()
    if pid == 0:
        store.claim([address], Observer())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    monkeypatch.setattr(job_store, "oom_kills", lambda: 5)
    work(store.folder)
    assert [failure["kind"] for failure in store[address].failures()] == ["out of memory"]
    assert store[address].is_done(), "the second try went well"


def test_a_job_that_kills_every_holder_is_given_up(store, monkeypatch):
    address = store.addresses()[0]
    monkeypatch.setattr(job_store, "oom_kills", lambda: None)
    for n in range(MAX_DEATHS + 2):
        pid = os.fork()
        if pid == 0:
            claim = store.claim([address], Observer())
            os._exit(0 if claim is None else 9)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == (9 if n <= MAX_DEATHS else 0)
    # The second try is one more holder; that it dies, too, is noticed by the next.
    assert [failure["kind"] for failure in store[address].failures()] == ["killed", "killed"]
    assert "getting further" in store[address].failures()[0]["message"]


def test_deaths_that_get_further_are_not_counted(store, monkeypatch):
    address = store.addresses()[0]
    monkeypatch.setattr(job_store, "oom_kills", lambda: None)
    for _ in range(MAX_DEATHS + 2):
        pid = os.fork()
        if pid == 0:
            claim = store.claim([address], Observer())
            (claim.work / "run").mkdir(exist_ok=True)
            with (claim.work / "run" / "metrics.jsonl").open("a") as file:
                file.write("{}\n")
            os._exit(0)
        os.waitpid(pid, 0)
    assert not store[address].failures()


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_ends_the_worker_and_blames_no_run(store):
    full = OSError(errno.ENOSPC, "No space left on device")

    def job(claim, screen):
        try:
            raise full
        except OSError:
            raise RunError("metrics.jsonl cannot be written. The disk is full.") from None

    assert work(store.folder, job=job) == DISK_FULL
    assert kinds(store) == [[], []]
    assert work(store.folder) == 0, "with space again it goes on"
    assert all(store[address].is_done() for address in store.addresses())


def test_a_disk_that_fills_up_at_the_very_end(store, monkeypatch):
    """result.json cannot be written: the run is not done, and nothing half is published."""
    real, full = job_store.write_json, [True]

    def write(path, value):
        if path.name == "result.json" and full[0]:
            raise RunError("The disk is full") from OSError(errno.ENOSPC, "No space left")
        return real(path, value)

    monkeypatch.setattr(job_store, "write_json", write)
    assert work(store.folder) == DISK_FULL
    assert not any(store[address].is_done() for address in store.addresses())
    full[0] = False
    assert work(store.folder) == 0
    assert all(store[address].is_done() for address in store.addresses())


def test_what_counts_as_a_full_disk():
    assert is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert not is_disk_full(OSError(errno.EACCES, "denied"))
    assert not is_disk_full(RuntimeError("x")) and not is_disk_full(None)


# --- losing the lease -----------------------------------------------------------------------------


def test_a_holder_that_hung_publishes_nothing(store):
    """It wakes up after somebody else has taken over, and finished."""
    address = store.addresses()[0]
    clock = iter((0.0, 100.0))
    stranger = Observer(lease_s=10, clock=lambda: next(clock))
    stranger._machine = "another"
    hung = store.claim([address], Observer())
    (hung.work / "run").mkdir()
    assert not stranger.is_free(store[address].path)
    taken = store.claim([address], stranger)
    assert taken.lease.generation == 2 and (taken.work / "run").is_dir(), "work is taken over"
    assert not hung.work.exists()
    with pytest.raises(OSError):
        (hung.work / "run" / "metrics.jsonl").write_text("late")
    assert taken.finish({"summary": {"by": "the second"}})
    assert not hung.finish({"summary": {"by": "the first"}})
    assert store[address].result() == {"summary": {"by": "the second"}}
    assert not list(store[address].path.glob("work-*"))


def test_two_that_finish_the_same_job_leave_one_result(store):
    """Should two ever hold a job at once, the first to finish counts."""
    address = store.addresses()[0]
    first = store.claim([address], Observer())
    clock = iter((0.0, 100.0))
    stranger = Observer(lease_s=10, clock=lambda: next(clock))
    stranger._machine = "another"
    stranger.is_free(store[address].path)
    second = store.claim([address], stranger)
    first.work.mkdir()  # the hung one made its folder again, unaware
    assert first.finish({"by": 1}) and not second.finish({"by": 2})
    assert store[address].result() == {"by": 1}


def test_a_lost_lease_ends_the_job_without_blame(store, monkeypatch):
    def job(claim, screen):
        claim.lease._is_lost = True
        screen.note("hello")  # raises LeaseLostError
        raise AssertionError("it went on")

    done = Worker(store.folder, job, poll_s=POLL_S)
    claim = store.claim(store.addresses(), Observer())
    assert done._do(claim) is None
    assert kinds(store) == [[], []]


# --- stopping -------------------------------------------------------------------------------------


def test_a_signal_stops_between_steps_and_lets_go(store):
    def job(claim, screen):
        os.kill(os.getpid(), signal.SIGTERM)
        return stub_job(claim, screen)

    assert work(store.folder, job=job) == 0
    assert not any(store[address].is_done() for address in store.addresses())
    claim = store.claim(store.addresses(), Observer())
    assert claim is not None, "the next worker need not wait"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_worker_without_its_driver_ends(store):
    store.write_queue(store.queue()[0], is_open=True)
    assert work(store.folder, parent=-1) == 0  # the parent is another process now
    assert not any(store[address].is_done() for address in store.addresses())
    assert work(store.folder, orphan_s=0.01) == 0, "idle, and no driver left"
    assert all(store[address].is_done() for address in store.addresses())


def test_progress_is_told_once_a_second(store):
    claim = store.claim(store.addresses(), Observer())
    now = [0.0]
    screen = worker.JobScreen(claim, lambda: False, clock=lambda: now[0])
    row = {"step": 1, "loss_nats": 5.0, "lr": 0.1, "grad_norm": 1.0}
    screen.training(row, 10, 3.0)
    told = json.loads((claim.work / "progress.json").read_text())
    assert told["share"] == 0.1 and told["doing"].startswith("step 1/10") and told["eta_s"] == 3.0
    screen.training({**row, "step": 2}, 10, None)
    assert json.loads((claim.work / "progress.json").read_text()) == told
    now[0] = 1.5
    screen.training({**row, "step": 3}, 10, None)
    assert json.loads((claim.work / "progress.json").read_text())["share"] == 0.3
    claim.lease.release()


def test_a_damaged_job_file_is_refused(store):
    from mixlab.core.errors import LabError

    address = store.addresses()[0]
    write_json(store[address].path / "job.json", {"nonsense": 1})
    with pytest.raises(LabError, match="damaged"):
        store[address].job()
