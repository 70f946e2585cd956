"""Sequential halving is a function of what is finished: any order of finishing gives the same."""

import random

import pytest

from mixlab.core.errors import LabError
from mixlab.stats import Halving

SEEDS = [11, 12, 13, 14, 15, 16, 17, 18]
ARMS = [f"arm{i}" for i in range(8)]


def loss(arm, seed):
    return ARMS.index(arm) + seed / 100


def test_rounds_by_hand():
    plan, values = Halving(rungs=(1, 3, 8), keep_always=("arm7",)), {arm: {} for arm in ARMS}
    wanted = plan.wanted(values, SEEDS)
    assert wanted == [(arm, 11) for arm in ARMS]
    for arm, seed in wanted:
        values[arm][seed] = loss(arm, seed)
    # Half of the seven that can be dropped, rounded up, and the base.
    kept = ["arm0", "arm1", "arm2", "arm3", "arm7"]
    assert plan.wanted(values, SEEDS) == [(arm, seed) for seed in (12, 13) for arm in kept]
    first, second = plan.history(values, SEEDS)
    assert first.is_finished and list(first.kept) == kept
    assert list(first.dropped) == ["arm4", "arm5", "arm6"]
    assert not second.is_finished and second.kept == () and second.n_seeds == 3


def test_it_goes_on_in_any_order_and_ends():
    for trial in range(5):
        rng, plan = random.Random(trial), Halving()
        values = {arm: {} for arm in ARMS}
        n_runs = 0
        while wanted := plan.wanted(values, SEEDS):
            arm, seed = rng.choice(wanted)
            values[arm][seed] = loss(arm, seed)
            n_runs += 1
        assert n_runs == 8 * 1 + 4 * 2 + 2 * 5
        last = plan.history(values, SEEDS)[-1]
        assert last.is_finished and last.arms == ("arm0", "arm1")
        assert last.means["arm0"] == pytest.approx(0.145)


def test_a_failed_arm_is_dropped_and_does_not_stop_the_others():
    plan, values = Halving(rungs=(1, 2)), {arm: {} for arm in ARMS[:4]}
    for arm in ARMS[1:4]:
        values[arm][11] = loss(arm, 11)
    assert plan.wanted(values, SEEDS) == [("arm0", 11)]
    assert plan.wanted(values, SEEDS, failed=["arm0"]) == [("arm1", 12), ("arm2", 12)]
    assert plan.history(values, SEEDS, ["arm0"])[0].dropped == ("arm0", "arm3")


def test_higher_may_be_better():
    values = {"a": {1: 0.1}, "b": {1: 0.9}, "c": {1: 0.5}}
    plan = Halving(rungs=(1, 2), lower_is_better=False)
    assert plan.history(values, [1, 2])[0].kept == ("b", "c")


@pytest.mark.parametrize("rungs", [(), (0, 1), (3, 3), (3, 1)])
def test_rungs_must_rise(rungs):
    with pytest.raises(LabError, match="rungs"):
        Halving(rungs=rungs)


def test_other_bad_plans():
    with pytest.raises(LabError, match="keep_frac"):
        Halving(keep_frac=1.0)
    with pytest.raises(LabError, match="at least 8"):
        Halving().history({"a": {}}, [1, 2])
