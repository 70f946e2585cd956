"""The jobs of a study as folders: what is to be run, who runs it, and what came of it.

    jobs/ADDRESS/job.json        what to run; ADDRESS is the digest of what decides its figures
                 lease-000003    who runs it (`lease.py`)
                 work-3/         what generation 3 of the lease has made so far
                 errors/3.json   how an attempt failed
                 done/           the result, there as a whole or not at all
                 failed/         what a job that is given up has left

A result is published by renaming `work-3` to `done`, which fails where `done` is there already. So
a job may be run twice, even at the same time, and counts once. Whoever takes over a job renames
`work-2` to `work-3`: the earlier holder, should it wake up, finds that its folder is gone.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixlab.core.config import Tree, digest
from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json, write_json
from mixlab.studies.lease import Lease, Observer, read_state

MAX_ATTEMPTS = 2
"""A failed job is tried once more."""
MAX_DEATHS = 8
"""Holders that may die one after the other without the work getting further."""
FINAL_KINDS = ("diverged",)
"""Failures that are results: the same config would fail in the same way."""
_NO_FIGURE = ("name", "about", "checks", "log")
"""Keys of a config that change no figure of its run."""

Purpose = Literal["train", "profile", "count"]


@dataclass(frozen=True)
class Job:
    """One run to be made; equal jobs have equal addresses on every machine."""

    kind: Purpose
    config: Tree
    data: str  # digest of the prepared data
    code: str  # digest of the code that decides figures
    keep: str = "last"  # checkpoints that stay; like what follows, no part of the address
    documents: bool = False  # whether the loss of every document is measured, too

    @property
    def address(self) -> str:
        config = {key: value for key, value in self.config.items() if key not in _NO_FIGURE}
        return digest({"kind": self.kind, "config": config, "data": self.data, "code": self.code})


class Failure(NamedTuple):
    """How an attempt ended that did not work out."""

    kind: str  # "out of memory", "diverged", "refused", "bug", "killed"
    message: str
    detail: str = ""  # a traceback, where there is one
    spent: dict[str, float] | None = None  # tokens, flops, seconds until then


class JobFolder:
    """One job on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done_path(self) -> Path:
        return self.path / "done"

    @property
    def failed_path(self) -> Path:
        return self.path / "failed"

    def job(self) -> Job:
        """What is to be run.

        Raises:
            LabError: job.json is missing or damaged.
        """
        tree = read_json(self.path / "job.json")
        try:
            return Job(**tree)
        except TypeError:
            raise LabError(f"{self.path / 'job.json'} is damaged: expected a job.") from None

    def result(self) -> dict[str, Any] | None:
        """What the finished job measured; None while it is not finished."""
        return read_json(self.done_path / "result.json")

    def is_done(self) -> bool:
        return self.done_path.is_dir()

    def failures(self) -> list[dict[str, Any]]:
        """The failed attempts so far, in order."""
        folder = self.path / "errors"
        if not folder.is_dir():
            return []
        files = [path for path in folder.glob("*.json") if path.stem.isdigit()]
        return [read_json(path) for path in sorted(files, key=lambda path: int(path.stem))]

    def has_failed(self) -> bool:
        """Whether it is given up."""
        failures = self.failures()
        return len(failures) >= MAX_ATTEMPTS or any(
            failure["kind"] in FINAL_KINDS for failure in failures
        )

    def is_settled(self) -> bool:
        """Whether nothing is left to do: done, or given up."""
        return self.is_done() or self.has_failed()


class JobStore:
    """All jobs of a study folder, and the queue that says which are wanted now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs_path(self) -> Path:
        return self.folder / "jobs"

    def __getitem__(self, address: str) -> JobFolder:
        return JobFolder(self.jobs_path / address)

    def addresses(self) -> list[str]:
        """Every job that was ever wanted."""
        if not self.jobs_path.is_dir():
            return []
        return sorted(p.name for p in self.jobs_path.iterdir() if (p / "job.json").exists())

    def add(self, job: Job, address: str | None = None) -> JobFolder:
        """Write the job down, if it is new; `address` saves working it out again."""
        folder = self[address or job.address]
        if not (folder.path / "job.json").exists():
            write_json(folder.path / "job.json", asdict(job))
        return folder

    def write_queue(self, addresses: Sequence[str], *, is_open: bool) -> None:
        """Say which jobs are wanted, in which order, and whether more may come."""
        write_json(self.folder / "queue.json", {"is_open": is_open, "jobs": list(addresses)})

    def queue(self) -> tuple[list[str], bool]:
        """(addresses, whether more may come)."""
        queue = read_json(self.folder / "queue.json")
        return ([], True) if queue is None else (queue["jobs"], queue["is_open"])

    def claim(self, addresses: Iterable[str], observer: Observer) -> "Claim | None":
        """The first of the jobs that is free, with its lease; None if none is."""
        for address in addresses:
            claim = self._claim(self[address], observer)
            if claim is not None:
                return claim
        return None

    def _claim(self, folder: JobFolder, observer: Observer) -> "Claim | None":
        while not folder.is_settled():
            dead = read_state(folder.path)
            lease = observer.claim(folder.path, oom_kills=oom_kills())
            if lease is None:
                return None
            if folder.is_settled():  # finished between the look and the claim
                lease.release()
                return None
            claim = Claim(folder, lease)
            if claim.take_over(dead.holder if dead and not dead.is_released else None):
                return claim
        return None


class Claim:
    """A job that this process holds."""

    def __init__(self, folder: JobFolder, lease: Lease) -> None:
        self.folder, self.lease = folder, lease

    @property
    def work(self) -> Path:
        """Where this holder, and nobody else, writes."""
        return self.folder.path / f"work-{self.lease.generation}"

    def take_over(self, dead: Mapping[str, Any] | None) -> bool:
        """Take what earlier holders have made; False if the job is given up instead.

        `dead` is the holder that ended without letting go, if one did.
        """
        earlier = sorted(
            (p for p in self.folder.path.glob("work-*") if p.name[5:].isdigit()),
            key=lambda path: int(path.name[5:]),
        )
        for path in earlier[:-1]:
            shutil.rmtree(path, ignore_errors=True)
        if earlier:
            os.rename(earlier[-1], self.work)
        else:
            self.work.mkdir()
        if dead is None:
            return True
        if "oom_kills" in dead and dead["oom_kills"] != oom_kills() and oom_kills() is not None:
            self.fail(
                Failure(
                    "out of memory",
                    "its process was killed by the system while memory had run out. Lower "
                    "train.micro_batch_size or the number of workers.",
                )
            )
            return False
        if self._n_deaths() >= MAX_DEATHS:
            self.fail(
                Failure(
                    "killed",
                    f"{MAX_DEATHS} processes in a row died over it without getting further.",
                )
            )
            return False
        return True

    def _n_deaths(self) -> int:
        """Holders that died since the work last grew, this look included."""
        grown = sum(path.stat().st_size for path in self.work.rglob("*.jsonl"))
        grown += sum(1 for _ in self.work.rglob("step-*"))
        mark = self.work / "deaths.json"
        before = read_json(mark) or {"size": -1, "n": 0}
        n = before["n"] + 1 if before["size"] == grown else 1
        write_json(mark, {"size": grown, "n": n})
        return n

    def fail(self, failure: Failure) -> None:
        """Write the failed attempt down and let go; after the last one, keep what there is."""
        errors = self.folder.path / "errors"
        write_json(errors / f"{self.lease.generation}.json", failure._asdict())
        if self.folder.has_failed() and not self.folder.failed_path.exists():
            with suppress(OSError):
                os.rename(self.work, self.folder.failed_path)
        self.lease.release()

    def finish(self, result: Mapping[str, Any]) -> bool:
        """Publish the work folder as the result; False if somebody else has done so before."""
        write_json(self.work / "result.json", result)
        (self.work / "deaths.json").unlink(missing_ok=True)
        try:
            os.rename(self.work, self.folder.done_path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            shutil.rmtree(self.work, ignore_errors=True)
            return False
        finally:
            self.lease.release()
        for path in self.folder.path.glob("work-*"):
            shutil.rmtree(path, ignore_errors=True)
        return True


def oom_kills() -> int | None:
    """Processes that the system has killed for memory in this container, where it says so."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error goes back to a disk, or a quota, that is full."""
    seen = 0
    while error is not None and seen < 20:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
