"""Speed and time left, by hand."""

import pytest

from mixlab.training.meters import Throughput, mfu


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_over_a_sliding_window() -> None:
    clock = Clock()
    meter = Throughput(clock=clock, window=2)
    meter.restart(500)
    assert meter.tokens_per_s() is None
    assert meter.eta_s(10) is None
    clock.now += 2
    assert meter.update(600) == 50.0
    clock.now += 2
    assert meter.update(900) == 100.0  # 400 tokens in 4 s
    clock.now += 1
    assert meter.update(1200) == 200.0  # the first update has left: 600 tokens in 3 s
    assert meter.eta_s(1000) == 5.0
    assert meter.eta_s(-5) == 0.0


def test_a_pause_counts_neither_as_time_nor_as_work() -> None:
    clock = Clock()
    meter = Throughput(clock=clock)
    meter.restart(0)
    clock.now += 1
    meter.update(100)
    clock.now += 60  # an evaluation
    meter.restart(100)
    assert meter.tokens_per_s() == pytest.approx(100)
    clock.now += 1
    assert meter.update(300) == pytest.approx(150)


def test_a_clock_that_stands_still_gives_no_rate() -> None:
    meter = Throughput(clock=Clock())
    meter.restart(0)
    assert meter.update(10) is None
    assert meter.eta_s(10) is None


def test_mfu() -> None:
    assert mfu(1000.0, 6e6, 6e10) == pytest.approx(0.1)
