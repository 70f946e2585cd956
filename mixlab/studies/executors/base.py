"""What a driver asks of an executor. Workers coordinate among themselves by leases alone."""

import sys
from pathlib import Path
from typing import Protocol

from mixlab.studies.runner import RunnerConfig


class Executor(Protocol):
    """A way to run workers. Starting one too many, or one twice, does no harm."""

    n_workers: int
    """Workers that may run at once."""

    def start(self, slot: int) -> None:
        """Start the worker of a slot, 0 to n_workers - 1, whose earlier one has ended."""
        ...

    def poll(self) -> dict[int, int | None]:
        """Slot -> exit status of workers that have been started; None while one runs or waits."""
        ...

    def stop(self, *, at_once: bool = False) -> None:
        """Ask all workers to save and end; with `at_once`, end them."""
        ...

    def last_words(self, slot: int) -> str:
        """The end of what the slot's worker wrote to its log, for an error message."""
        ...


def worker_command(folder: Path, runner: RunnerConfig, slot: int, *options: str) -> list[str]:
    """The one command that every executor starts."""
    return [
        sys.executable, "-m", "mixlab", "study", "worker", str(folder.absolute()),
        "--slot", str(slot), "--hang-after", str(runner.hang_after.amount), *options,
    ]  # fmt: skip


def log_path(folder: Path, slot: int) -> Path:
    """Where the worker of a slot writes what it has to say."""
    return folder / "workers" / f"{slot}.log"


def tail(path: Path, n_chars: int = 1500) -> str:
    """The end of a text file; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-n_chars:].strip()
    except OSError:
        return ""
