"""Bootstrap bands and Pareto fronts."""

import math

import numpy as np
import pytest
import scipy.stats

from mixlab.stats import curve_band, front_band, front_share, pareto_front


def test_a_band_of_few_seeds_is_a_t_interval_at_each_point():
    curves = np.random.default_rng(0).normal(size=(4, 3))
    band = curve_band(curves)
    for j in range(3):
        low, high = scipy.stats.ttest_1samp(curves[:, j], 0).confidence_interval(0.95)
        assert (band.low[j], band.high[j]) == pytest.approx((low, high))
    assert band.mean == pytest.approx(curves.mean(axis=0).tolist())


def test_a_band_of_many_seeds_covers_as_often_as_said():
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(400):
        band = curve_band(rng.exponential(size=(20, 1)), n_boot=500, seed=i)
        hits += band.low[0] < 1 < band.high[0]
    # Skewed data and 20 seeds: a little below 95 %; 3 sds of the share are 0.035.
    assert 0.89 <= hits / 400 <= 0.985


def test_one_seed_has_a_line_and_no_band():
    band = curve_band([[1.0, 2.0]])
    assert band.mean == [1.0, 2.0] and all(map(math.isnan, band.low))


def test_the_front_by_hand():
    costs, losses = [1, 2, 2, 3, 4, 1], [5, 4, 3, 3.5, 1, 6]
    assert pareto_front(costs, losses) == [0, 2, 4]
    assert pareto_front([1, 1], [2, 2]) == [0]
    assert pareto_front([], []) == []


def test_share_of_draws_on_the_front():
    costs = {"cheap": {1: 1.0, 2: 1.0}, "dear": {1: 2.0, 2: 2.0}, "bad": {1: 3.0, 2: 3.0}}
    losses = {"cheap": {1: 5.0, 2: 5.0}, "dear": {1: 4.0, 2: 5.5}, "bad": {1: 9.0, 2: 9.0}}
    found = front_share(costs, losses, n_boot=4000)
    assert found["cheap"] == 1.0 and found["bad"] == 0.0
    # Off the front only when seed 2 is drawn twice: one draw in four.
    assert found["dear"] == pytest.approx(0.75, abs=0.03)


def test_equal_arms_share_the_front():
    same = {"a": {1: 1.0}, "b": {1: 1.0}}
    assert front_share(same, same, n_boot=10) == {"a": 1.0, "b": 1.0}


def test_front_band_says_what_each_cost_buys():
    costs = {"cheap": {1: 1.0, 2: 1.0}, "dear": {1: 2.0, 2: 2.0}}
    losses = {"cheap": {1: 5.0, 2: 6.0}, "dear": {1: 4.0, 2: 4.5}}
    band = front_band(costs, losses, [0.5, 1.5, 2.5])
    assert math.isnan(band.mean[0]) and math.isnan(band.low[0])
    assert band.mean[1:] == [5.5, 4.25]
    assert (band.low[1], band.high[1], band.low[2], band.high[2]) == (5.0, 6.0, 4.0, 4.5)


def test_arms_that_lack_seeds_keep_their_own():
    costs = {"a": {1: 1.0, 2: 1.0, 3: 1.0}, "b": {1: 1.0}}
    losses = {"a": {1: 5.0, 2: 5.0, 3: 5.0}, "b": {1: 4.0}}
    assert front_share(costs, losses, n_boot=200) == {"a": 0.0, "b": 1.0}
