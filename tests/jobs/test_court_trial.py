"""A trial finds what is wrong with a kernel, and takes the fastest that is right."""

import time
from dataclasses import replace

import pytest
import torch

from mixlab.jobs.court import trial
from mixlab.jobs.court.trial import Case, Inputs, try_candidates
from mixlab.ops.packing import Packing

CPU = torch.device("cpu")


def running_sum(x, ids):
    """(B, T, C): what came so far in the same document."""
    position = Packing(ids).position
    total = x.cumsum(1)
    before = (torch.arange(x.shape[1]) - position - 1).clamp(min=0)
    start = total.gather(1, before[..., None].expand_as(x).long())
    first = (torch.arange(x.shape[1]) - position == 0)[..., None]
    return torch.where(first, total, total - start)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return 1.1 * dy


def unwritten_end(x):
    y = torch.empty_like(x)
    y[:, :-1] = x[:, :-1]
    return y


def failing(x, ids):
    raise ValueError("no kernel image\nis available")


def exhausting(x, ids):
    raise torch.OutOfMemoryError("out of memory")


BACKENDS = {
    "definition": running_sum,
    "right": running_sum,
    "slow": lambda x, ids: (time.sleep(0.001), running_sum(x, ids))[1],
    "wrong": lambda x, ids: 1.1 * running_sum(x, ids),
    "wrong gradient": lambda x, ids: running_sum(WrongGradient.apply(x), ids),
    "unwritten": lambda x, ids: running_sum(unwritten_end(x), ids),
    "leaking": lambda x, ids: running_sum(x, ids) + 1e-3 * x.roll(1, dims=1),
    "failing": failing,
    "exhausting": exhausting,
    "plain": running_sum,
}


def case(*candidates):
    def make(n_rows, n_tokens, g):
        x = torch.randn(n_rows, n_tokens, 4, generator=g)
        ids = torch.zeros(n_rows, n_tokens, dtype=torch.long)
        ids[:, n_tokens // 3 :] = 1
        return Inputs({"x": x}, Packing(ids))

    def run(inputs, backend):
        return (BACKENDS[backend](inputs.leaves["x"], inputs.packing.ids),)

    return Case("sum", {"n": 4}, torch.float32, 3, 24, candidates, "definition", make, run)


def tried(*candidates, **options):
    verdict = try_candidates(case(*candidates), CPU, **options)
    return verdict.chosen, {c.name: c for c in verdict.candidates}


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("wrong", "is off by 1.0e-01"),
        ("wrong gradient", "gradient of x is off by 1.0e-01"),
        ("unwritten", "is off by inf"),
        ("leaking", "depends on the document before it"),
        ("failing", "ValueError: no kernel image"),
        ("exhausting", "out of memory"),
    ],
)
def test_what_is_wrong_is_found_and_told(name, note):
    chosen, found = tried(name, "plain")
    assert chosen == "plain"
    assert note in found[name].note and not found[name].agrees
    assert found["plain"].agrees and found["plain"].error < 1e-6


def test_the_fastest_that_agrees_is_chosen(monkeypatch):
    times = {"slow": 3.0, "right": 2.0, "wrong": 1.0}
    monkeypatch.setattr(trial, "_milliseconds", lambda case, name, device: times[name])
    chosen, found = tried("slow", "wrong", "right", "plain")
    assert chosen == "right" and found["slow"].ms == 3.0 and found["wrong"].ms is None
    assert found["plain"].note == "not tried: a kernel agrees"


def test_times_are_those_of_forward_and_backward():
    """A call that sleeps for a millisecond cannot be faster than that."""
    _, found = tried("slow", "plain")
    assert found["slow"].ms >= 1.0


def test_where_nothing_agrees_auto_keeps_its_own_rule():
    chosen, found = tried("wrong", "failing")
    assert chosen is None and not any(c.agrees for c in found.values())


def test_time_for_trials_ends_the_search_but_not_before_something_agrees():
    chosen, found = tried("wrong", "right", "slow", "plain", is_late=lambda: True)
    assert chosen == "right"
    assert found["slow"].note == "not tried: the time for trials is over"


def test_what_compiles_for_minutes_is_the_last_resort():
    late = replace(case("slow", "right", "plain"), slow=("slow",))
    verdict = try_candidates(late, CPU)
    assert verdict.chosen == "right" and "compiles for minutes" in verdict.candidates[1].note
    verdict = try_candidates(replace(case("slow", "wrong", "plain"), slow=("slow",)), CPU)
    assert verdict.chosen == "slow"


def test_trials_leave_generators_and_switches_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    tried("right", "wrong", "plain")
    assert torch.equal(torch.rand(3), want)
    assert not torch.are_deterministic_algorithms_enabled()
