"""Leases: who works on a folder, safe against kills, hangs, slow disks and wrong clocks.

A lease is a file `lease-000007`, where 7 is its generation; the highest generation is in force, and
a claim is the exclusive creation of the next one, so of any number of contenders one wins. The file
holds one line that names the holder, then one byte for every renewal. Nobody compares clocks:

    - The holder appends a byte every few seconds, as long as its work shows signs of life.
    - An observer that sees no growth for `LEASE_S` of its own monotonic clock may claim.
    - The holder keeps the file locked (flock). An observer on the same machine that gets this lock
      knows that the holder is dead, however it died, and may claim at once.
    - A final "R" means that the holder has let go.

So a wall clock that is wrong or runs backwards has no influence. A holder that was hung and comes
back finds a higher generation, and stops; what it wrote meanwhile lies in a folder that carries its
own generation (`job_store.py`).
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mixlab.core.errors import LabError

try:
    import fcntl
except ImportError:  # not a POSIX system: a dead holder is recognised by silence alone
    fcntl = None  # type: ignore[assignment]

LEASE_S = 90.0
"""Silence after which a lease counts as abandoned."""
BEAT_S = 10.0
"""Time between renewals."""
_PREFIX = "lease-"
_RELEASED = b"R"


class LeaseLostError(Exception):
    """Somebody else holds the work now; whatever this process does for it is void."""


class State(NamedTuple):
    """What a lease file says."""

    generation: int
    holder: dict[str, Any]  # host, pid, and what the claimer added
    n_beats: int
    is_released: bool


def generation(folder: Path) -> int:
    """The lease in force; 0 if there never was one."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    found = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    return max((int(digits) for digits in found if digits.isdigit()), default=0)


def read_state(folder: Path, number: int | None = None) -> State | None:
    """The lease in force, or that of a generation; None if there is none."""
    number = generation(folder) if number is None else number
    if not number:
        return None
    try:
        content = _path(folder, number).read_bytes()
        line, _, beats = content.partition(b"\n")
        holder = json.loads(line)
    except (OSError, ValueError):
        return None
    return State(number, holder, len(beats), beats.endswith(_RELEASED))


def machine() -> str:
    """This machine since it was started; equal in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:06d}"


class Observer:
    """Watches leases over time with this process's monotonic clock."""

    def __init__(
        self, *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s, self._clock = lease_s, clock
        self._seen: dict[Path, tuple[int, int, float]] = {}  # generation, beats, first seen at
        self._machine = machine()

    def is_free(self, folder: Path) -> bool:
        """Whether the folder may be claimed: never held, let go, holder dead, or silent."""
        state = read_state(folder)
        if state is None or state.is_released:
            return True
        if state.holder.get("machine") == self._machine and _is_unlocked(folder, state.generation):
            return True
        now, mark = self._clock(), (state.generation, state.n_beats)
        seen = self._seen.get(folder)
        if seen is None or seen[:2] != mark:
            self._seen[folder] = (*mark, now)
            return False
        return now - seen[2] >= self._lease_s

    def claim(self, folder: Path, **facts: Any) -> "Lease | None":
        """Take the lease if it is free; None if it is not, or somebody was faster."""
        before = generation(folder)
        if not self.is_free(folder):
            return None
        return Lease.create(folder, before + 1, {**facts, "machine": self._machine})


def _is_unlocked(folder: Path, number: int) -> bool:
    """Whether nobody on this machine has the lease file locked."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(_path(folder, number), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class Lease:
    """A lease in force, renewed by a thread of its own until it is let go."""

    def __init__(self, folder: Path, number: int, descriptor: int) -> None:
        self.folder, self.generation = folder, number
        self._descriptor = descriptor
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_lost = False
        self._alive_at = time.monotonic()

    @classmethod
    def create(cls, folder: Path, number: int, facts: dict[str, Any]) -> "Lease | None":
        """Create generation `number`; None if it exists already.

        Raises:
            OSError: the folder cannot be written, for example because the disk is full.
        """
        holder = {"host": platform.node(), "pid": os.getpid(), **facts}
        draft = folder / f".{uuid.uuid4().hex}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(draft, flags, 0o644)
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks: silence decides there
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps(holder).encode() + b"\n")
            try:
                os.link(draft, _path(folder, number))
            except FileExistsError:
                os.close(descriptor)
                return None
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        finally:
            with suppress(OSError):
                os.unlink(draft)
        lease = cls(folder, number, descriptor)
        lease._forget_older()
        return lease

    def _forget_older(self) -> None:
        for name in os.listdir(self.folder):
            digits = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and digits.isdigit() and int(digits) < self.generation:
                with suppress(OSError):
                    os.unlink(self.folder / name)

    # --- renewal --------------------------------------------------------------------------

    def keep(self, *, every_s: float = BEAT_S, hang_s: float | None = None) -> None:
        """Renew in a thread; after `hang_s` without `show_life` it stops, and others may claim."""
        self._alive_at = time.monotonic()

        def beat() -> None:
            while not self._stop.wait(every_s):
                if hang_s is not None and time.monotonic() - self._alive_at > hang_s:
                    continue
                self.renew()

        self._thread = threading.Thread(target=beat, daemon=True, name="lease")
        self._thread.start()

    def show_life(self) -> None:
        """The work goes on.

        Raises:
            LeaseLostError: somebody else has claimed it meanwhile.
        """
        self._alive_at = time.monotonic()
        if self._is_lost:
            raise LeaseLostError(str(self.folder))

    def renew(self) -> None:
        """Append a beat, and notice whether the lease is still in force."""
        if generation(self.folder) > self.generation:
            self._is_lost = True
            return
        with suppress(OSError):  # a full disk: the lease runs out if that lasts
            os.write(self._descriptor, b".")

    def is_mine(self) -> bool:
        """Whether no higher generation exists."""
        if generation(self.folder) > self.generation:
            self._is_lost = True
        return not self._is_lost

    def release(self) -> None:
        """Let go; the next one need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            os.write(self._descriptor, _RELEASED)
        with suppress(OSError):
            os.close(self._descriptor)


def require_links(folder: Path) -> None:
    """Refuse a file system on which claims would not be exclusive.

    Raises:
        LabError: it has no hard links.
    """
    probe, other = folder / f".{uuid.uuid4().hex}.tmp", folder / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.touch()
        os.link(probe, other)
    except OSError as error:
        raise LabError(
            f"{folder}: workers cannot claim runs there ({error.strerror or error}): expected a "
            "folder that can be written, on a file system with hard links. Choose another --folder."
        ) from None
    finally:
        for path in (probe, other):
            with suppress(OSError):
                path.unlink()
