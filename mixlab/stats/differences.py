"""The difference between two arms: paired by seed, with an interval and a p value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mixlab.stats.bootstrap import (
    MIN_SEEDS,
    DocumentLosses,
    bootstrap_document_means,
    bootstrap_means,
    expanded_percentiles,
)

Values = Mapping[int, float]
Documents = Mapping[int, DocumentLosses]


@dataclass(frozen=True)
class Difference:
    """First arm minus second. Without two runs to judge by, only the mean is known."""

    mean: float
    low: float | None  # interval at 1 - alpha, not corrected for other pairs
    high: float | None
    se: float | None
    df: float | None
    p: float | None  # two-sided, not corrected
    n: int  # seeds that both arms have; for unpaired arms the smaller number
    seeds: tuple[int, ...]  # those seeds; empty for unpaired arms
    sd: float | None  # of the differences by seed
    method: str

    def reversed(self) -> "Difference":
        """Second arm minus first."""
        ends = (self.low, self.high)
        low, high = (None if end is None else -end for end in reversed(ends))
        return Difference(
            -self.mean, low, high, self.se, self.df, self.p, self.n, self.seeds, self.sd,
            self.method,
        )  # fmt: skip


class Residual(NamedTuple):
    """The noise of one run in a whole study: what arm and seed together do not explain."""

    sd: float
    df: int


def residual(values: Mapping[str, Values]) -> Residual | None:
    """Fit arm + seed to all runs; None where nothing is left to judge noise by.

    With every arm at every seed this is the residual of a randomised block design.
    """
    arms, seeds = list(values), sorted({seed for runs in values.values() for seed in runs})
    cells = [(a, seeds.index(s), y) for a, arm in enumerate(arms) for s, y in values[arm].items()]
    design = np.zeros((len(cells), len(arms) + len(seeds)))
    rows = np.arange(len(cells))
    design[rows, [a for a, _, _ in cells]] = 1
    design[rows, [len(arms) + s for _, s, _ in cells]] = 1
    y = np.array([y for _, _, y in cells])
    # Two columns of ones in sum: one direction is free, or more where arms share no seed.
    fit, _, rank, _ = np.linalg.lstsq(design, y - y.mean(), rcond=None)
    df = len(cells) - int(rank)
    if df < 1:
        return None
    left = y - y.mean() - design @ fit
    return Residual(math.sqrt(float(left @ left) / df), df)


def difference(
    first: Values,
    second: Values,
    *,
    alpha: float,
    study: Residual | None = None,
    documents: tuple[Documents, Documents] | None = None,
    n_boot: int = 10_000,
    seed: int = 0,
) -> Difference:
    """First minus second, over the seeds that both have.

    The standard error is that of the pair, or of the whole study where that is larger: with few
    seeds a pair's own spread is often small by chance, and an arm that is noisier than the others
    is not covered by a common spread. `study` may be absent; for two arms the two are the same.

    Below 8 seeds the interval is a t interval. From 8 on it is a bootstrap over seeds and, if
    losses by document are given, over documents, whose spread then counts in the test as well.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    if not seeds:
        return _unpaired(first, second, alpha)
    d = np.array([first[s] - second[s] for s in seeds])
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Difference(mean, None, None, None, None, None, n, seeds, None, "one seed")
    sd = float(d.std(ddof=1))
    se, df, method = sd / math.sqrt(n), float(n - 1), "paired t"
    sample = None
    if n >= MIN_SEEDS:
        method = "bootstrap over seeds"
        sample = bootstrap_means(d, n_boot, seed) if n_boot else None
        if documents is not None:
            method = "bootstrap over seeds, then documents"
            nats, n_targets = _document_differences(*documents, seeds)
            sample = bootstrap_document_means(nats, n_targets, n_boot, seed)
            se = max(se, float(sample.std()) * math.sqrt(n / (n - 1)))
    if study is not None:
        df = float(study.df)
        se = max(se, study.sd * math.sqrt(2 / n))
    half = t_quantile(1 - alpha / 2, df) * se
    low, high = mean - half, mean + half
    if sample is not None:
        low, high = map(float, expanded_percentiles(sample, n, 1 - alpha))
    p = p_value(mean / se, df) if se else float(mean == 0)
    return Difference(mean, low, high, se, df, p, n, seeds, sd, method)


def t_quantile(q: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, q))


def p_value(t: float, df: float) -> float:
    """Two-sided."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(t)))


def _unpaired(first: Values, second: Values, alpha: float) -> Difference:
    """Welch's t for arms without a common seed."""
    x, y = (np.array(list(runs.values())) for runs in (first, second))
    mean, n = float(x.mean() - y.mean()), min(len(x), len(y))
    if n < 2:
        return Difference(
            mean, None, None, None, None, None, n, (), None, "no common seed, too few runs"
        )
    parts = [float(v.var(ddof=1)) / len(v) for v in (x, y)]
    se, method = math.sqrt(sum(parts)), "Welch t, not paired: no common seed"
    if not se:
        return Difference(mean, mean, mean, 0.0, None, float(mean == 0), n, (), None, method)
    df = se**4 / sum(v**2 / (len(w) - 1) for v, w in zip(parts, (x, y), strict=True))
    half, p = t_quantile(1 - alpha / 2, df) * se, p_value(mean / se, df)
    return Difference(mean, mean - half, mean + half, se, df, p, n, (), None, method)


def _document_differences(
    first: Documents, second: Documents, seeds: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, documents) nats and (documents,) targets."""
    n_targets = np.asarray(first[seeds[0]].n_targets, dtype=float)
    for losses in (*(first[s] for s in seeds), *(second[s] for s in seeds)):
        assert np.array_equal(losses.n_targets, n_targets), "runs saw different documents"
    nats = [np.asarray(first[s].nats) - np.asarray(second[s].nats) for s in seeds]
    return np.stack(nats), n_targets
