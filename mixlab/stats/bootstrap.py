"""Resampling: seeds first, then documents; bands around mean curves.

All runs of a comparison are measured on the same documents, so one draw takes one set of documents
for all its seeds: seeds and documents are crossed, not nested (Owen's pigeonhole bootstrap,
Annals of Applied Statistics 2007). Draws are reproducible: they depend on `seed` alone.

Percentiles of a bootstrap over few seeds are too narrow. `expanded_percentiles` widens them to what
a t interval would have (Hesterberg, "What teachers should know about the bootstrap",
arXiv:1411.5279, section 4.2.2).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_SEEDS = 8
"""From here on a bootstrap over seeds is worth more than a t interval."""


@dataclass(frozen=True)
class DocumentLosses:
    """One run's loss on every document of the validation set, in the order of the set."""

    nats: Floats  # (documents,) summed over the targets of each
    n_targets: Floats  # (documents,)


@dataclass(frozen=True)
class Band:
    """A mean curve with an interval at each point; equally long lists."""

    mean: list[float]
    low: list[float]
    high: list[float]


def draws(n: int, n_boot: int, rng: np.random.Generator) -> Floats:
    """(n_boot, n) how often each of n things is in each draw."""
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)


def bootstrap_means(x: Floats, n_boot: int, seed: int) -> Floats:
    """(n_boot, ...) means over the first axis of `x` (n, ...), resampled."""
    weights = draws(len(x), n_boot, np.random.default_rng(seed)) / len(x)
    return np.tensordot(weights, x, axes=1)


def bootstrap_document_means(nats: Floats, n_targets: Floats, n_boot: int, seed: int) -> Floats:
    """(n_boot,) differences per token, with seeds and documents resampled.

    `nats` (seeds, documents) holds the difference of two arms, summed over each document's targets;
    `n_targets` (documents,) is the same for all.
    """
    rng = np.random.default_rng(seed)
    by_seed = draws(len(nats), n_boot, rng) / len(nats)
    by_document = draws(len(n_targets), n_boot, rng)
    total = np.einsum("bd,bd->b", by_seed @ nats, by_document)
    return total / (by_document @ n_targets)


def expanded_percentiles(sample: Floats, n: int, level: float) -> tuple[Floats, Floats]:
    """Low and high end over the first axis of `sample`, drawn from `n` things."""
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))
    low, high = np.quantile(sample, [tail, 1 - tail], axis=0)
    return low, high


def curve_band(
    curves: ArrayLike, *, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> Band:
    """The mean of curves (seeds, points) with its interval at each point.

    From 8 seeds on by bootstrap, below that by a t interval, since a bootstrap over few seeds has
    few different draws. One curve has no interval: low and high are nan.
    """
    x = np.asarray(curves, dtype=float)
    n, mean = len(x), x.mean(axis=0)
    if n < 2:
        low = high = np.full_like(mean, np.nan)
    elif n < MIN_SEEDS:
        from scipy.special import stdtrit

        half = stdtrit(n - 1, (1 + level) / 2) * x.std(axis=0, ddof=1) / math.sqrt(n)
        low, high = mean - half, mean + half
    else:
        low, high = expanded_percentiles(bootstrap_means(x, n_boot, seed), n, level)
    return Band(mean.tolist(), low.tolist(), high.tolist())
