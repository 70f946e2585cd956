"""Noise floor, smallest difference and number of seeds, against tables and simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from mixlab.stats import effect, noise_floor, sd_of_difference, seeds_needed, smallest_detectable


def test_noise_floor_by_hand():
    found = noise_floor([4.0, 4.2, 4.4])
    assert (found.n, found.mean, found.low, found.high) == (3, pytest.approx(4.2), 4.0, 4.4)
    assert found.sd == pytest.approx(0.2)
    # Chi-squared with 2 degrees of freedom: -2 ln(q); an sd from 3 runs is known to a factor of 12.
    assert found.sd_low == pytest.approx(0.2 * math.sqrt(2 / (-2 * math.log(0.025))))
    assert found.sd_high == pytest.approx(0.2 * math.sqrt(2 / (-2 * math.log(0.975))))


def test_one_run_has_no_noise_floor():
    found = noise_floor([4.0])
    assert (found.n, found.sd, found.sd_low, found.low) == (1, None, None, 4.0)


def test_smallest_difference_is_found_as_often_as_said():
    size = smallest_detectable(0.5, 5, power=0.8)
    draws = np.random.default_rng(0).normal(size, 0.5, (20_000, 5))
    found = (scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    # 4 sds of a share of 0.8 in 20,000.
    assert found == pytest.approx(0.8, abs=0.0113)


def test_more_comparisons_and_fewer_seeds_need_larger_differences():
    one, many = smallest_detectable(1.0, 5), smallest_detectable(1.0, 5, n_comparisons=45)
    assert one < many and one < smallest_detectable(1.0, 3)
    assert smallest_detectable(1.0, 1) is None
    assert smallest_detectable(2.0, 5) == pytest.approx(2 * one)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 30])
def test_seeds_needed_inverts_the_smallest_difference(n):
    size = smallest_detectable(0.1, n)
    assert seeds_needed(size * 1.0001, 0.1) == n
    assert seeds_needed(-size * 1.0001, 0.1) == n
    assert seeds_needed(size * 0.999, 0.1) == n + 1


def test_the_textbook_number_of_pairs():
    """An effect of half an sd at power 0.8 takes 34 pairs (Cohen; G*Power gives the same)."""
    assert seeds_needed(0.5, 1.0) == 34


def test_no_number_of_seeds_finds_nothing():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(0.1, 0.0) == 2


def test_sd_of_a_difference():
    draws = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 200_000)
    assert sd_of_difference(1.0, 0.6) == pytest.approx((draws[:, 0] - draws[:, 1]).std(), rel=0.01)
    assert sd_of_difference(0.1) == pytest.approx(0.1 * math.sqrt(2))


def test_effect_in_three_units():
    found = effect(5.146, 4.055, bytes_per_token=math.e)
    assert found.nats == pytest.approx(-1.091)
    # Not 26.9 %, which is 5.146 / 4.055 - 1.
    assert found.reduction_percent == pytest.approx(21.2, abs=0.01)
    assert found.bits_per_byte == pytest.approx(-1.091 / math.log(2) / math.e)
    assert effect(4.0, 4.4).reduction_percent == pytest.approx(-10)
    assert effect(4.0, 4.4).bits_per_byte is None
    assert effect(0.0, 1.0).reduction_percent is None
