"""Schedules: hand cases, and properties over every corner of warm-up, decay and length."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mixlab.core.config import Config, decode, to_tree
from mixlab.core.errors import ConfigError
from mixlab.training.schedule import (
    SCHEDULES,
    Bridge,
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    ScheduleConfig,
    WsdConfig,
    lr_factor,
)

N_STEPS = st.one_of(st.integers(1, 6), st.integers(1, 300))
FRACS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleConfig:
    kind = draw(st.sampled_from(list(SCHEDULES)))
    tree: dict[str, object] = {"warmup_steps": draw(st.integers(0, 400))}
    if kind != "constant":
        tree["floor_frac"] = draw(FRACS)
    if kind == "wsd":
        tree |= {"decay_frac": draw(FRACS), "shape": draw(st.sampled_from(["linear", "sqrt"]))}
    return decode(SCHEDULES[kind], tree)


def largest_step(schedule: ScheduleConfig, n_steps: int) -> float:
    """The largest change between two updates that the shape allows, by calculus."""
    up = 1 / schedule.warmup_steps if schedule.warmup_steps else 0.0
    length = n_steps - schedule.decay_start(n_steps)
    if length == 0:
        return up
    slope = 1 / length
    if isinstance(schedule, CosineConfig):
        slope *= math.pi / 2  # the steepest slope of (1 + cos(pi x)) / 2
    if isinstance(schedule, WsdConfig) and schedule.shape == "sqrt":
        slope = math.sqrt(1 / length)  # sqrt rises most over its first interval
    return max(up, slope)


@settings(deadline=None)
@given(schedules(), N_STEPS)
def test_every_corner_is_a_fraction_without_jumps(schedule: ScheduleConfig, n_steps: int) -> None:
    factors = [schedule.factor(step, n_steps) for step in range(n_steps)]
    assert all(math.isfinite(f) and 0 < f <= 1 for f in factors)
    bound = largest_step(schedule, n_steps) * (1 + 1e-9) + 1e-12  # rounding of the sums
    assert all(abs(b - a) <= bound for a, b in pairwise(factors))


@settings(deadline=None)
@given(schedules(), N_STEPS)
def test_decay_start_is_where_the_factor_may_first_fall(
    schedule: ScheduleConfig, n_steps: int
) -> None:
    start = schedule.decay_start(n_steps)
    assert 0 <= start <= n_steps
    before = [schedule.factor(step, n_steps) for step in range(start)]
    after = [schedule.factor(step, n_steps) for step in range(start, n_steps)]
    assert before == sorted(before)
    assert after == sorted(after, reverse=True)


@settings(deadline=None)
@given(schedules(), schedules(), st.integers(1, 200), st.integers(1, 200), st.integers(1, 300))
def test_a_bridge_has_no_jump_and_ends_on_the_childs_schedule(
    parent: ScheduleConfig, child: ScheduleConfig, from_step: int, more: int, n_bridge: int
) -> None:
    n_steps = from_step + more
    last = parent.factor(from_step - 1, from_step)
    bridge = Bridge(from_step=from_step, from_factor=last, n_steps=n_bridge)
    factors = [last]
    factors += [lr_factor(child, bridge, step, n_steps) for step in range(from_step, n_steps)]
    assert all(math.isfinite(f) and 0 < f <= 1 for f in factors)
    # One step of the bridge's own line, plus what the child's schedule moves meanwhile.
    bound = 1 / n_bridge + largest_step(child, n_steps) + 1e-9
    assert all(abs(b - a) <= bound for a, b in pairwise(factors))
    for step in range(from_step + n_bridge - 1, n_steps):
        assert lr_factor(child, bridge, step, n_steps) == child.factor(step, n_steps)


def test_hand_cases() -> None:
    linear = LinearConfig(warmup_steps=2)
    assert [linear.factor(s, 6) for s in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = CosineConfig(warmup_steps=0, floor_frac=0.5)
    assert cosine.factor(0, 2) == 1.0
    assert cosine.factor(1, 2) == pytest.approx(0.75)  # half of the way, half of a cosine
    wsd = WsdConfig(warmup_steps=1, decay_frac=0.4, floor_frac=0.2)
    assert [wsd.factor(s, 5) for s in range(5)] == pytest.approx([1, 1, 1, 1, 0.6])
    assert wsd.decay_start(5) == 3
    sqrt = WsdConfig(decay_frac=1, shape="sqrt")
    assert [sqrt.factor(s, 4) for s in (0, 1)] == pytest.approx([1, 0.5])
    assert ConstantConfig().factor(7, 8) == 1.0
    assert ConstantConfig().decay_start(8) == 8


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_warm_up_corners(kind: str) -> None:
    assert SCHEDULES[kind]().factor(0, 1) == 1.0
    assert SCHEDULES[kind](warmup_steps=1).factor(0, 1) == 1.0
    equal = SCHEDULES[kind](warmup_steps=4)
    assert [equal.factor(s, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert SCHEDULES[kind](warmup_steps=8).factor(3, 4) == 0.5  # ends on the ramp


def test_a_long_run_does_not_round_its_end_to_zero() -> None:
    for schedule in (CosineConfig(floor_frac=0), WsdConfig(shape="sqrt"), LinearConfig()):
        assert schedule.factor(10**12 - 1, 10**12) > 0


def test_wsd_before_its_decay_does_not_depend_on_the_length() -> None:
    wsd = WsdConfig(warmup_steps=10, decay_frac=0.25)
    assert [wsd.factor(s, 100) for s in range(75)] == [wsd.factor(s, 1000) for s in range(75)]


def test_a_schedule_is_chosen_by_kind_and_round_trips() -> None:
    class Holder(Config):
        schedule: SCHEDULES.annotation()

    tree = {"schedule": {"kind": "wsd", "warmup_steps": 3, "decay_frac": 0.1}}
    holder = decode(Holder, tree)
    assert isinstance(holder.schedule, WsdConfig)
    assert decode(Holder, to_tree(holder)) == holder
    assert TypeAdapter(SCHEDULES.annotation()).validate_python({"kind": "constant"}).kind
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps = -1: expected"):
        decode(Holder, {"schedule": {"kind": "wsd", "warmup_steps": -1}})
    with pytest.raises(ConfigError, match=r"schedule\.kind = 'cosin'.*'cosine'"):
        decode(Holder, {"schedule": {"kind": "cosin"}})
