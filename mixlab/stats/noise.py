"""What a study can see: the spread of equal runs, the smallest difference, the seeds it takes.

Powers are those of the two-sided paired t test (noncentral t, from statsmodels). `n_comparisons`
divides alpha, which is the first and hardest step of Holm's correction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of every interval that is given without a level of its own."""


@dataclass(frozen=True)
class NoiseFloor:
    """One arm run with several seeds."""

    n: int
    mean: float
    sd: float | None  # between seeds; None for a single one
    sd_low: float | None  # 95 % interval of the sd, by the chi-squared distribution
    sd_high: float | None
    low: float  # smallest value
    high: float  # largest value


def noise_floor(values: Sequence[float]) -> NoiseFloor:
    """The spread of the runs of one arm; at least one value."""
    x = np.asarray(values, dtype=float)
    assert x.size, "no values"
    n, mean = len(x), float(x.mean())
    if n < 2:
        return NoiseFloor(n, mean, None, None, None, mean, mean)
    from scipy.stats import chi2

    sd, tail = float(x.std(ddof=1)), (1 - LEVEL) / 2
    low, high = (sd * math.sqrt((n - 1) / chi2.ppf(q, n - 1)) for q in (1 - tail, tail))
    return NoiseFloor(n, mean, sd, float(low), float(high), float(x.min()), float(x.max()))


def sd_of_difference(sd: float, correlation: float = 0.0) -> float:
    """The sd of the difference between two arms of one seed, for arms of equal spread.

    `correlation` is between arms over seeds: what equal batches and equal initial weights share.
    It is hardly ever negative, so that 0 gives an upper limit, sqrt(2) sd.
    """
    return sd * math.sqrt(2 * (1 - correlation))


def smallest_detectable(
    sd_of_differences: float,
    n_seeds: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    n_comparisons: int = 1,
    n_arms: int = 2,
) -> float | None:
    """The true difference that `n_seeds` pairs find with the chance `power`; None below 2 seeds.

    With more than two arms the noise is judged by all of them, as `compare_arms` does.
    """
    if n_seeds < 2:
        return None
    from scipy.optimize import brentq

    level = alpha / n_comparisons
    high = 1.0
    while _power(high, n_seeds, level, n_arms) < power:
        high *= 2
    found = brentq(lambda d: _power(d, n_seeds, level, n_arms) - power, 0.0, high, xtol=1e-6)
    return float(found) * sd_of_differences


def seeds_needed(
    effect: float,
    sd_of_differences: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    n_comparisons: int = 1,
    n_arms: int = 2,
    at_most: int = 1000,
) -> int | None:
    """The fewest seeds that find a true difference `effect`; None if `at_most` are too few."""
    if effect == 0:
        return None
    if sd_of_differences == 0:
        return 2
    size, level = abs(effect) / sd_of_differences, alpha / n_comparisons
    if _power(size, at_most, level, n_arms) < power:
        return None
    low, high = 1, at_most  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = _power(size, middle, level, n_arms) >= power
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _power(size: float, n_seeds: int, alpha: float, n_arms: int) -> float:
    """The chance to find a difference of `size` sds of the differences.

    The residual of `n_arms` arms at `n_seeds` seeds has (arms - 1) (seeds - 1) degrees of freedom.
    """
    from statsmodels.stats.power import TTestPower

    # Far out statsmodels' noncentral t underflows to nan, where the power is 1.
    df = (n_arms - 1) * (n_seeds - 1)
    found = float(TTestPower().power(size, n_seeds, alpha, df=df, alternative="two-sided"))
    return found if math.isfinite(found) else 1.0
