"""Tie groups by hand, and how often they are wrong, by simulation."""

from itertools import combinations

import numpy as np
import pytest

from mixlab.stats import compare_arms
from mixlab.stats.groups import tie_groups


def groups(ranked, *different):
    pairs = {frozenset(pair) for pair in different}
    found = tie_groups(ranked, lambda a, b: frozenset((a, b)) in pairs)
    return [(group.letter, "".join(group.members)) for group in found]


def test_nothing_differs_is_one_group():
    assert groups("xyz") == [("a", "xyz")]


def test_all_differ():
    assert groups("xyz", *combinations("xyz", 2)) == [("a", "x"), ("b", "y"), ("c", "z")]


def test_a_middle_arm_belongs_to_both():
    assert groups("xyz", "xz") == [("a", "xy"), ("b", "yz")]


def test_a_group_within_an_earlier_one_is_dropped():
    """Here y and z differ, yet neither from x: z is not the head of a group, y and z share one."""
    assert groups("xyz", "yz") == [("a", "xyz")]


def test_letters_go_on_after_z():
    ranked = [f"arm{i}" for i in range(28)]
    found = tie_groups(ranked, lambda a, b: True)
    assert [group.letter for group in found][-3:] == ["z", "aa", "ab"]


def simulate(n_studies, n_arms, n_seeds, *, better=0.0, shared=0.0, noisy=1.0, seed=0):
    """Share of studies with one group, and in which arm0, `better` sds better, is told from arm1.

    Every run has noise of sd 1; all arms have `shared` of its variance in common for each seed.
    The noise of arm0 is `noisy` times that of the others.
    """
    rng = np.random.default_rng(seed)
    one_group = found = alone = 0
    for _ in range(n_studies):
        own = rng.normal(size=(n_arms, n_seeds)) * np.sqrt(1 - shared)
        own[0] *= noisy
        y = own + np.sqrt(shared) * rng.normal(size=n_seeds)
        y[0] -= better
        study = compare_arms(
            {f"arm{i}": dict(enumerate(row)) for i, row in enumerate(y.tolist())}, n_boot=0
        )
        one_group += len(study.groups) == 1
        found += study.pair("arm0", "arm1").is_different
        alone += study.groups[0].members == ("arm0",)
    return one_group / n_studies, found / n_studies, alone / n_studies


def test_equal_arms_are_one_group_and_a_large_effect_is_found():
    # 200 studies, sd of a share of 0.97 is 0.012: 0.93 is 3 sds below the true rate.
    assert simulate(200, 10, 3)[0] >= 0.93
    assert simulate(100, 10, 8, better=3.0)[1] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5, 8])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_ten_copies_are_one_group_in_95_of_100_studies(n_seeds, shared):
    assert simulate(1000, 10, n_seeds, shared=shared)[0] >= 0.95


@pytest.mark.slow
def test_an_arm_three_times_as_noisy_does_not_make_false_groups():
    # True rates are 0.92 to 0.96: the errors of that arm are covered by its own spread, mostly.
    assert simulate(1000, 10, 3, noisy=3.0)[0] >= 0.90
    assert simulate(1000, 10, 8, noisy=3.0)[0] >= 0.95


@pytest.mark.slow
def test_three_sds_are_found_in_90_of_100_studies():
    """Among ten arms with 8 seeds, between two arms with 5; ten seeds to stand alone among ten."""
    assert simulate(1000, 10, 8, better=3.0)[1] >= 0.9
    assert simulate(1000, 2, 5, better=3.0)[1] >= 0.9
    assert simulate(1000, 10, 10, better=3.0)[2] >= 0.9
    # What seeds have in common is paired away, so that less noise is left.
    assert simulate(1000, 10, 6, better=3.0, shared=0.5)[1] >= 0.9
