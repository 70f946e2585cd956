"""Leases: one holder at a time, whatever dies, hangs, or sets the clock."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mixlab.core.errors import LabError
from mixlab.studies import lease as leases
from mixlab.studies.lease import (
    Lease,
    LeaseLostError,
    Observer,
    generation,
    read_state,
    require_links,
)


class Clock:
    """A monotonic clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stranger(clock, monkeypatch) -> Observer:
    """Another machine, for which only the holder's silence counts."""
    observer = Observer(lease_s=10, clock=clock)
    observer._machine = "another"
    return observer


def test_one_claim_at_a_time(tmp_path):
    first = Observer().claim(tmp_path)
    assert first is not None and first.generation == 1
    assert Observer().claim(tmp_path) is None
    first.release()
    second = Observer().claim(tmp_path)
    assert second is not None and second.generation == 2
    assert [p.name for p in tmp_path.iterdir()] == ["lease-000002"], "drafts or old leases stay"
    second.release()


def test_of_many_contenders_one_wins(tmp_path):
    """All create the same generation at the same moment."""
    won, gate = [], threading.Barrier(16)

    def contend() -> None:
        gate.wait()
        lease = Lease.create(tmp_path, 1, {})
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=contend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_a_dead_holder_is_noticed_at_once(tmp_path):
    """A process that was killed cannot let go, but the system unlocks its file."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        Observer().claim(tmp_path)
        os.write(writer, b"x")
        signal.pause()
        os._exit(0)
    os.read(reader, 1)
    assert Observer().claim(tmp_path) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    taken = Observer().claim(tmp_path)
    assert taken is not None and taken.generation == 2
    taken.release()


def test_silence_ends_a_lease_and_a_beat_does_not(tmp_path, stranger, clock):
    holder = Observer().claim(tmp_path)
    assert not stranger.is_free(tmp_path)
    clock.now = 9.0
    assert not stranger.is_free(tmp_path)
    holder.renew()
    clock.now = 18.0  # 18 s since the first look, but the beat was seen only now
    assert not stranger.is_free(tmp_path)
    clock.now = 28.5
    assert stranger.is_free(tmp_path)
    holder.release()


def test_wall_clocks_play_no_part(tmp_path, stranger, clock, monkeypatch):
    """Neither one that runs backwards, nor a file from the future or the distant past."""
    holder = Observer().claim(tmp_path)
    assert not stranger.is_free(tmp_path)
    for wall, stamp in ((-1e9, 0), (1e12, 4e9), (0, 1)):
        monkeypatch.setattr(time, "time", lambda wall=wall: wall)
        os.utime(tmp_path / "lease-000001", (stamp, stamp))
        clock.now += 1.0
        assert not stranger.is_free(tmp_path)
    clock.now += 10.0
    assert stranger.is_free(tmp_path)
    holder.release()


def test_a_clock_that_goes_backwards_only_makes_one_wait(tmp_path, stranger, clock):
    """Should the monotonic clock itself be wrong, the lease holds longer, never shorter."""
    clock.now = 100.0
    holder = Observer().claim(tmp_path)
    assert not stranger.is_free(tmp_path)
    clock.now = 50.0
    assert not stranger.is_free(tmp_path)
    clock.now = 109.0
    assert not stranger.is_free(tmp_path)
    clock.now = 110.5
    assert stranger.is_free(tmp_path)
    holder.release()


def test_a_holder_that_hangs_stops_beating_and_loses(tmp_path, stranger, clock):
    holder = Observer().claim(tmp_path)
    holder.keep(every_s=0.01, hang_s=0.05)
    deadline = time.monotonic() + 20
    while (before := read_state(tmp_path).n_beats) == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert before
    while time.monotonic() < deadline:  # no sign of life: in the end no beats either
        n = read_state(tmp_path).n_beats
        time.sleep(0.1)
        if n == read_state(tmp_path).n_beats:
            break
    assert not stranger.is_free(tmp_path)
    clock.now = 11.0
    taken = stranger.claim(tmp_path)
    assert taken is not None
    while not holder._is_lost and time.monotonic() < deadline:
        holder.renew()
    with pytest.raises(LeaseLostError):
        holder.show_life()  # it wakes up, and learns that it has lost
    assert not holder.is_mine() and taken.is_mine()
    holder.release()
    assert not Observer().is_free(tmp_path), "the loser's release must not free the winner's"
    taken.release()


def test_a_damaged_lease_is_free(tmp_path):
    (tmp_path / "lease-000004").write_bytes(b"")  # power failed before its line was written
    taken = Observer().claim(tmp_path)
    assert taken is not None and taken.generation == 5
    taken.release()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leases.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        Observer().claim(tmp_path)
    assert not list(tmp_path.iterdir())
    assert generation(tmp_path) == 0


def test_a_file_system_without_links_is_refused(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    require_links(tmp_path)
    monkeypatch.setattr(leases.os, "link", no_links)
    with pytest.raises(LabError, match="hard links"):
        require_links(tmp_path)
    assert not list(Path(tmp_path).iterdir())
