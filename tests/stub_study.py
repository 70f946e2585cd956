"""A study whose runs take milliseconds, and drivers and workers that are forked and killed.

The jobs write real files, go on from what is there, and have figures that follow from their config
alone; leases, queue, driver, worker, tuning and results are the ones of mixlab. No torch.

As a script: `chaos FOLDER KILLS SEED` kills drivers and workers at random until it has killed so
many, then lets the study finish; `die FOLDER WHO N` kills one at every Nth of its file operations.
"""

import json
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixlab.core.config import digest
from mixlab.core.json_files import append_line, read_lines, write_json
from mixlab.studies.driver import Driver
from mixlab.studies.job_store import Claim
from mixlab.studies.lease import Observer
from mixlab.studies.progress import Silent
from mixlab.studies.rows import RowCache
from mixlab.studies.watch import look_at, write_results
from mixlab.studies.worker import JobScreen, Worker

N_STEPS, STEP_S = 12, 0.002
N_JOBS = 44  # of the study as `stub_design` makes it, the one that fails included
POLL_S, BEAT_S = 0.004, 0.05
BEST = {"base": 1.0, "low": 0.25, "high": 3.0, "equal": 1.0}
"""The best factor on the rate of each arm; `buggy` has a bug with one seed."""


def stub_design(arms: int = 5, n_seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """study.json of a tuned study."""
    names = [*list(BEST)[: arms - 1], "buggy"] if arms > 1 else ["base"]
    return {
        "format": 1, "name": "stub", "about": "Arms of arithmetic.", "is_smoke": False,
        "is_as_published": False, "effect": None, "baseline": "base",
        "metric": {"name": "validation.loss_nats", "lower_is_better": True,
                   "unit": "nats per token"},
        "seeds": list(range(1, n_seeds + 1)),
        "match": {"by": ["tokens"], "tolerance": 0.01, "solve": "d_ff"},
        "budget": {"per_run": f"{N_STEPS} steps", "total": None},
        "tune": {"seeds": [n_seeds + 1], "max_runs": 9}, "screen": None, "keep": "last",
        "documents": False, "data": {"text": {"content_hash": "0"}},
        "code": {"digest": "code", "version": "0", "commit": None, "is_dirty": None, "torch": "2"},
        "arms": [_arm(name) for name in names],
        **changes,
    }  # fmt: skip


def _arm(name: str) -> dict[str, Any]:
    config = {"name": f"stub-{name}", "arm": name, "seed": 1, "data": {"seq_len": 8},
              "train": {"optimizer": {"kind": "adamw", "lr": 0.001, "rest": None}}}  # fmt: skip
    return {
        "name": name, "about": "", "changes": {"arm": name}, "config": config, "data": "text",
        "lr": 0.001, "optimizer": "adamw", "n_params": 1000, "n_active_params": 1000,
        "n_embedding_params": 100, "flops_per_token": 6000.0, "flops_per_token_counted": None,
        "state_bytes": 64, "state_tokens": 1024, "memory_bytes_estimate": 16000, "solved": None,
        "planned": {"steps": N_STEPS, "tokens": 8 * N_STEPS, "flops": 48e3 * N_STEPS,
                    "seconds": None},
    }  # fmt: skip


def start_stub(folder: Path, design: dict[str, Any]) -> None:
    """A study folder as a driver would make it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", design)


class NonFiniteLossError(Exception):
    """Named as the error of a training that blew up."""


def loss_of(config: dict[str, Any]) -> float:
    """A U-curve over the logarithm of the rate, with noise that belongs to the config."""
    octaves = math.log2(config["train"]["optimizer"]["lr"] / 0.001 / BEST.get(config["arm"], 1.0))
    noise = int(digest(config)[:6], 16) / 16**6
    shared = int(digest(config["seed"])[:6], 16) / 16**6
    return 3.0 + 0.05 * octaves**2 + 0.004 * noise + 0.02 * shared


def stub_job(claim: Claim, screen: JobScreen) -> dict[str, Any]:
    """Write one line per step, from where the last holder came to; then the figures."""
    config, run = claim.folder.job().config, claim.work / "run"
    run.mkdir(exist_ok=True)
    if not (run / "config.yaml").exists():
        write_json(run / "config.yaml", config)
    lr, loss = config["train"]["optimizer"]["lr"], loss_of(config)
    for step in range(len(read_lines(run / "metrics.jsonl")) + 1, N_STEPS + 1):
        time.sleep(STEP_S)
        row = {"step": step, "tokens": 8 * step, "flops": 48e3 * step, "elapsed_s": 0.1 * step,
               "loss_nats": loss + 1 / step, "lr": lr, "grad_norm": 1.0}  # fmt: skip
        if step == 5 and lr > 0.0018 and config["arm"] == "equal":
            raise NonFiniteLossError("step 5: the loss is nan")
        if step == 7 and config["arm"] == "buggy" and config["seed"] == 2:
            raise RuntimeError("a bug that comes back")
        append_line(run / "metrics.jsonl", row)
        screen.training(row, N_STEPS, None)
    row = {"step": N_STEPS, "tokens": 8 * N_STEPS, "elapsed_s": 0.1 * N_STEPS,
           "split": "validation", "loss_nats": loss, "accuracy": 0.5, "perplexity": 20.0,
           "bits_per_byte": 1.0, "n_tokens": 64, "weights": "raw"}  # fmt: skip
    if not read_lines(run / "evals.jsonl"):
        append_line(run / "evals.jsonl", row)
    summary = {"status": "finished", "steps": N_STEPS, "tokens": 8 * N_STEPS,
               "flops": 48e3 * N_STEPS, "train_s": 0.1 * N_STEPS, "final": row, "test": row,
               "n_params": 1000, "n_active_params": 1000,
               "context": {"unigram_entropy_nats": 5.0, "ln_vocab_nats": 6.0}}  # fmt: skip
    write_json(run / "summary.json", summary)
    return {"summary": summary, "order": digest(config["seed"]), "data": "text",
            "environment": {"python": "3"}, "peak_memory_bytes": None}  # fmt: skip


# --- processes ------------------------------------------------------------------------------------


def work(folder: Path, parent: int | None = None, job: Any = stub_job, **settings: Any) -> int:
    """A worker in this process."""
    observer = settings.pop("observer", None) or Observer()
    return Worker(
        folder, job, observer=observer, poll_s=POLL_S, beat_s=BEAT_S, parent=parent, **settings
    ).work()


def drive(folder: Path, executor: Any, screen: Any = None, **settings: Any) -> None:
    """A driver in this process, to the end of the study."""
    driver = Driver(folder, lambda: executor, screen or Silent(), poll_s=POLL_S, beat_s=BEAT_S,
                    **settings)  # fmt: skip
    with driver:
        content = json.loads((folder / "study.json").read_text())
        cache = RowCache(folder, content)
        driver.drive(
            cache.refresh,
            lambda: look_at(folder, content),
            settled=lambda: write_results(folder, cache) and None,
        )
        write_results(folder)


def fork(folder: Path, body: Callable[[], Any]) -> int:
    """Run `body` in a child, whose number is noted in the folder."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        (folder / "pids").mkdir(exist_ok=True)
        (folder / "pids" / str(os.getpid())).touch()
        status = body() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class ForkExecutor:
    """Workers as forks of the driver."""

    def __init__(self, folder: Path, n_workers: int = 2, job: Any = stub_job) -> None:
        self._folder, self.n_workers, self._job = folder, n_workers, job
        self._states: dict[int, int | None] = {}
        self._pids: dict[int, int] = {}

    def start(self, slot: int) -> None:
        parent = os.getpid()
        body = lambda: work(self._folder, parent, self._job)  # noqa: E731
        self._pids[slot], self._states[slot] = fork(self._folder, body), None

    def poll(self) -> dict[int, int | None]:
        for slot, pid in self._pids.items():
            if self._states[slot] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self._states[slot] = os.waitstatus_to_exitcode(status)
        return dict(self._states)

    def stop(self, *, at_once: bool = False) -> None:
        for slot, status in self.poll().items():
            if status is None:
                os.kill(self._pids[slot], signal.SIGKILL if at_once else signal.SIGTERM)

    def last_words(self, slot: int) -> str:
        return ""


class InProcessExecutor:
    """One worker that does a job whenever the driver looks: for tests without processes."""

    def __init__(self, folder: Path, job: Any = stub_job) -> None:
        self._folder, self.n_workers, self._job = folder, 1, job
        self.status: int | None = None

    def start(self, slot: int) -> None:
        worker = Worker(self._folder, self._job, poll_s=POLL_S, beat_s=BEAT_S)
        addresses, _ = worker.store.queue()
        self.status = 0
        claim = worker.store.claim(addresses, Observer())
        if claim is not None:
            self.status = worker._do(claim) or 0

    def poll(self) -> dict[int, int | None]:
        return {0: self.status}

    def stop(self, *, at_once: bool = False) -> None:
        pass

    def last_words(self, slot: int) -> str:
        return "the last words"


# --- chaos ----------------------------------------------------------------------------------------


def chaos(folder: Path, n_kills: int, seed: int) -> dict[str, int]:
    """Kill random drivers and workers until `n_kills` are dead, then let the study finish."""
    g, counts = random.Random(seed), {"driver": 0, "worker": 0, "early": 0, "looking_on": 0}
    drivers: set[int] = set()
    while counts["driver"] + counts["worker"] < n_kills:
        if not any(is_alive(pid) for pid in drivers):
            drivers.add(fork(folder, lambda: drive(folder, ForkExecutor(folder))))
        elif g.random() < 0.05:  # now and then a second driver looks on
            drivers.add(fork(folder, lambda: drive(folder, ForkExecutor(folder))))
            counts["looking_on"] += 1
        # Spread over the whole study: the further it is, the sooner the next kill.
        n_done = sum(1 for _ in (folder / "jobs").glob("*/done"))
        is_ahead = n_done / N_JOBS > (counts["driver"] + counts["worker"]) / n_kills
        time.sleep(g.uniform(0.0, 0.02) if is_ahead else g.uniform(0.02, 0.15))
        victims = [int(path.name) for path in (folder / "pids").glob("*")] if drivers else []
        victims = [pid for pid in victims if is_alive(pid)]
        if not victims:
            reap(drivers)
            counts["early"] += 1
            assert counts["early"] < 1000, "the study ends before enough have been killed"
            continue
        workers = [pid for pid in victims if pid not in drivers]
        victim = g.choice(workers if workers and g.random() < 0.6 else victims)
        os.kill(victim, signal.SIGKILL)
        counts["driver" if victim in drivers else "worker"] += 1
        reap(drivers)
    for pid in drivers:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    reap(drivers)
    counts["done_before_the_end"] = sum(1 for _ in (folder / "jobs").glob("*/done"))
    last = fork(folder, lambda: drive(folder, ForkExecutor(folder)))
    counts["status"] = os.waitstatus_to_exitcode(os.waitpid(last, 0)[1])
    return counts


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def reap(drivers: set[int]) -> None:
    """Collect what has ended."""
    for pid in list(drivers):
        if os.waitpid(pid, os.WNOHANG)[0]:
            drivers.discard(pid)


CALLS = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "write", "open")


def die_at(n: int) -> None:
    """Let this process kill itself at its nth file operation."""
    left = [n]

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def deaths(root: Path, who: str, every: int, design: dict[str, Any]) -> list[str]:
    """Studies in which one driver or worker dies at its nth file operation, for many n.

    Returns the digest of results.json of each, once it was finished by others.
    """
    found, n = [], 1
    while True:
        folder = root / f"{n}" / "stub"
        start_stub(folder, design)
        store_queue = Driver(folder, lambda: None, Silent())  # type: ignore[arg-type,return-value]
        entries = RowCache(folder, design).refresh()
        for entry in entries:
            store_queue.store.add(entry.job)
        store_queue.store.write_queue([e.address for e in entries], is_open=False)

        def victim(n: int = n, folder: Path = folder) -> int:
            die_at(n)
            if who == "worker":
                return work(folder)
            drive(folder, InProcessExecutor(folder))
            return 0

        status = os.waitstatus_to_exitcode(os.waitpid(fork(folder, victim), 0)[1])
        last = fork(folder, lambda folder=folder: drive(folder, InProcessExecutor(folder)))
        assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0
        found.append(digest((folder / "results.json").read_text()))
        if status != -signal.SIGKILL:
            return found
        n += every


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "chaos":
        start_stub(Path(where), stub_design())
        print(json.dumps(chaos(Path(where), int(rest[0]), int(rest[1]))))
    elif what == "undisturbed":
        start_stub(Path(where), stub_design())
        drive(Path(where), ForkExecutor(Path(where)))
    else:
        design = stub_design(arms=1, n_seeds=2, tune=None)
        print(json.dumps(deaths(Path(where), rest[0], int(rest[1]), design)))
