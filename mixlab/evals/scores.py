"""A score with what is needed to judge it: standard error, number of cases, level of guessing."""

import math
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """One figure of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None  # None where there are too few cases for one
    n: int  # cases that were scored
    cases: str  # what a case is: tokens, questions, ...
    chance: float | None  # what a model that knows nothing of the task gets; None if undefined
    higher_is_better: bool

    def row(self) -> dict[str, Any]:
        """Plain data."""
        return self._asdict()


class Estimate(NamedTuple):
    value: float
    standard_error: float | None


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """sum(numerators) / sum(denominators) over clusters, such as nats over tokens of documents.

    Clusters are taken as drawn independently; within one, anything may depend on anything. The
    error is the delta method's (Cochran, "Sampling Techniques", chapter 6), infinite population.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    kept = bottom > 0
    top, bottom = top[kept], bottom[kept]
    total, n = bottom.sum(), len(bottom)
    if not total:
        return Estimate(math.nan, None)
    value = top.sum() / total
    if n < 2:
        return Estimate(float(value), None)
    residuals = top - value * bottom
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(total)
    return Estimate(float(value), error)


def share(hits: np.ndarray) -> Estimate:
    """The mean of independent yes-or-no cases with its standard error.

    Where all cases agree, the plain error would be 0, as if nothing were uncertain; there it is
    taken at (k + 1) / (n + 2) instead (Agresti and Coull, The American Statistician 52, 1998).
    """
    n, k = len(hits), float(np.sum(hits))
    if n < 2:
        return Estimate(k / n if n else math.nan, None)
    if k in (0, n):
        p = (k + 1) / (n + 2)
        return Estimate(k / n, math.sqrt(p * (1 - p) / n))
    return ratio(hits, np.ones(n))


def clustered_share(hits: np.ndarray) -> Estimate:
    """`share` of (n, q) cases, of which those of a row may depend on each other."""
    n, q = hits.shape
    if hits.all() or not hits.any():  # as if each row were one case
        return share(hits[:, 0])
    return ratio(hits.sum(axis=1), np.full(n, q))
