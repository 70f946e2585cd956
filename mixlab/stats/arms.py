"""All arms of a study beside each other: every pair, corrected for their number, and tie groups."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mixlab.stats.differences import Difference, Documents, Values, difference, residual, t_quantile
from mixlab.stats.groups import TieGroup, tie_groups


@dataclass(frozen=True)
class ArmSummary:
    """The runs of one arm."""

    name: str
    n: int
    mean: float
    sd: float | None  # between seeds
    low: float | None  # t interval of the mean, at 1 - alpha
    high: float | None
    values: dict[int, float]  # by seed
    letters: str  # of its tie groups


@dataclass(frozen=True)
class Pair:
    """Two arms, the first with the better mean."""

    first: str
    second: str
    difference: Difference  # first - second
    p_holm: float | None  # corrected over all pairs that can be tested
    is_different: bool


@dataclass(frozen=True)
class ArmComparison:
    """Every arm and every pair."""

    alpha: float
    lower_is_better: bool
    residual_sd: float | None  # noise of one run, what arm and seed explain being taken out
    df: int | None
    arms: tuple[ArmSummary, ...]  # best first
    pairs: tuple[Pair, ...]
    groups: tuple[TieGroup, ...]

    @property
    def n_tested(self) -> int:
        """Pairs that Holm's correction counts."""
        return sum(pair.difference.p is not None for pair in self.pairs)

    def arm(self, name: str) -> ArmSummary:
        return next(arm for arm in self.arms if arm.name == name)

    def pair(self, a: str, b: str) -> Pair:
        """The pair turned so that its difference is a - b."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (a, b):
                return pair
            if (pair.first, pair.second) == (b, a):
                return replace(pair, first=a, second=b, difference=pair.difference.reversed())
        raise KeyError((a, b))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_arms(
    values: Mapping[str, Values],
    *,
    alpha: float = 0.05,
    lower_is_better: bool = True,
    documents: Mapping[str, Documents] | None = None,
    n_boot: int = 10_000,
) -> ArmComparison:
    """Compare all arms pair by pair, given as {arm: {seed: value}}; every arm has a run.

    `documents` holds the losses by document of every run, or is absent; see `difference`. A pair is
    different if its p value, corrected by Holm's method over all pairs that have one, is below
    `alpha`.
    """
    assert values and all(values.values()), "an arm without a run"
    sign = 1 if lower_is_better else -1
    means = {name: float(np.mean(list(runs.values()))) for name, runs in values.items()}
    ranked = sorted(values, key=lambda name: sign * means[name])
    study = residual(values)
    found: list[Pair] = []
    for i, first in enumerate(ranked):
        for second in ranked[i + 1 :]:
            d = difference(
                values[first], values[second], alpha=alpha, study=study, n_boot=n_boot,
                documents=(documents[first], documents[second]) if documents else None,
            )  # fmt: skip
            found.append(Pair(first, second, d, None, False))
    pairs = _corrected(found, alpha)
    different = {frozenset((p.first, p.second)) for p in pairs if p.is_different}
    groups = tie_groups(ranked, lambda a, b: frozenset((a, b)) in different)
    return ArmComparison(
        alpha=alpha,
        lower_is_better=lower_is_better,
        residual_sd=study.sd if study else None,
        df=study.df if study else None,
        arms=tuple(_summary(name, values[name], groups, alpha) for name in ranked),
        pairs=tuple(pairs),
        groups=groups,
    )


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p values (Holm 1979): the i-th smallest times the number that is left, made rising.

    statsmodels has the same, but collects garbage at every call, a tenth of a second each.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    n_left = len(values) - np.arange(len(values))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * n_left))
    return corrected.tolist()


def _corrected(pairs: list[Pair], alpha: float) -> list[Pair]:
    """The pairs with Holm's correction over those that have a p value."""
    corrected = iter(holm([p for pair in pairs if (p := pair.difference.p) is not None]))
    done = []
    for pair in pairs:
        if pair.difference.p is not None:
            p = next(corrected)
            pair = replace(pair, p_holm=p, is_different=p < alpha)
        done.append(pair)
    return done


def _summary(name: str, runs: Values, groups: tuple[TieGroup, ...], alpha: float) -> ArmSummary:
    x = np.array(list(runs.values()))
    n, mean, sd, low, high = len(x), float(x.mean()), None, None, None
    if n > 1:
        sd = float(x.std(ddof=1))
        half = t_quantile(1 - alpha / 2, n - 1) * sd / n**0.5
        low, high = mean - half, mean + half
    letters = "".join(group.letter for group in groups if name in group.members)
    return ArmSummary(name, n, mean, sd, low, high, dict(runs), letters)
