"""Writes in the background: of the state as it was, one at a time, errors heard, no thread left."""

import threading

import pytest
import torch

from mixlab.training import background
from mixlab.training.background import BackgroundWriter


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("mixlab-save")]


@pytest.fixture
def writer():
    made = BackgroundWriter()
    yield made
    made.close()
    assert not threads()


def test_what_is_written_is_the_state_at_the_call(writer):
    go, written = threading.Event(), []

    def write(groups):
        go.wait(10)
        written.append(groups["model"]["w"].tolist())

    w = torch.tensor([1.0, 2.0])
    writer.submit({"model": {"w": w}}, write)
    w += 1  # training goes on
    assert not written and threads()
    go.set()
    writer.wait()
    writer.submit({"model": {"w": w}}, write)
    writer.wait()
    assert written == [[1.0, 2.0], [2.0, 3.0]]


def test_one_write_at_a_time(writer):
    go, order = threading.Event(), []

    def slow(groups):
        go.wait(10)
        order.append("slow")

    threading.Timer(0.05, go.set).start()
    writer.submit({"a": {"x": torch.ones(1)}}, slow)
    writer.submit({"a": {"x": torch.ones(1)}}, lambda groups: order.append("next"))
    assert order[0] == "slow"  # the second call waited for it
    writer.wait()
    assert order == ["slow", "next"]


def test_an_error_is_heard_once_and_by_whoever_asks_first(writer):
    def fail(groups):
        raise OSError("disk full")

    for ask in (
        writer.wait,
        lambda: writer.submit({"a": {}}, fail),
        lambda: [writer.check() for _ in range(10_000_000)],
    ):
        writer.submit({"a": {"x": torch.ones(1)}}, fail)
        with pytest.raises(OSError, match="disk full"):
            ask()
        writer.check()
        writer.wait()


def test_tied_tensors_stay_tied_and_strides_are_no_matter(writer):
    found = {}
    w = torch.arange(6.0).view(2, 3)
    writer.submit({"m": {"embed": w, "head": w, "turned": w.T}}, lambda g: found.update(g["m"]))
    writer.wait()
    assert found["embed"] is found["head"] and torch.equal(found["turned"], w.T)
    assert found["embed"] is not w


def test_a_state_too_large_to_copy_is_written_at_once(writer, monkeypatch):
    monkeypatch.setattr(background, "memory_bytes", lambda: 100)
    w, found = torch.ones(100), []
    writer.submit({"m": {"w": w}}, lambda groups: found.append(groups["m"]["w"]))
    assert found == [w] and not threads()


def test_memory_that_the_system_does_not_lock_serves_as_well(monkeypatch):
    empty = torch.empty

    def refusing(*args, pin_memory=False, **settings):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **settings)

    monkeypatch.setattr(torch, "empty", refusing)
    found = background._empty(torch.ones(2, 3, dtype=torch.bfloat16), pinned=True)
    assert found.shape == (2, 3) and found.dtype == torch.bfloat16
