"""The verdict on a claim, from the finished runs of its study.

A statement compares one arm with others. With `d` the advantage of the first arm, its interval at
1 - alpha, and `by` the smallest difference that counts:

    better_than      supported if the whole interval is above `by`, not supported if it is below
    not_worse_than   supported if the whole interval is above -`by`, not supported if it is below
    differ           supported if the interval of some pair lies outside +-`by`, not supported if
                     those of all pairs lie inside; intervals corrected for the number of pairs

and undecided otherwise. `all_of` needs no correction: it is true only if every part is. For
`any_of`, alpha is divided among the parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from mixlab import stats
from mixlab.core.errors import LabError
from mixlab.report.study.material import Arm, Study, known
from mixlab.studies.claims.claim_file import QUANTITIES, ClaimFile, Statement

Word = Literal["supported", "not supported", "undecided"]
SUPPORTED: Word = "supported"
NOT_SUPPORTED: Word = "not supported"
UNDECIDED: Word = "undecided"


@dataclass(frozen=True)
class Compared:
    """Two arms: by how much the first is ahead."""

    first: str
    second: str
    advantage: float
    low: float | None
    high: float | None
    n: int
    seeds_needed: int | None
    """To find that the first arm is ahead by more than the margin, if the advantage is true."""


@dataclass(frozen=True)
class Judged:
    """One statement with its verdict."""

    statement: Statement
    verdict: Word
    compared: tuple[Compared, ...] = ()
    reason: str = ""
    """Why it is undecided, where it is not for the figures."""


@dataclass(frozen=True)
class Verdict:
    """The answer to a claim."""

    claim: ClaimFile
    verdict: Word
    judged: tuple[Judged, ...]
    reasons: tuple[str, ...]
    """What stands in the way of an answer, whatever the figures."""


def judge(claim: ClaimFile, study: Study) -> Verdict:
    """Judge every statement by the study as it stands.

    Raises:
        LabError: the study lacks an arm that the claim names: it is another one, or was changed.
    """
    for name in (name for statement in claim.statements for name in statement.arms):
        if name not in {arm.name for arm in study.arms}:
            raise LabError(
                f"arm = {name!r}: expected an arm of the study {study.name} that was run: "
                f"{', '.join(arm.name for arm in study.arms)}. Give the folder of {claim.study}, "
                "or run it again."
            )
    metric = claim.metric or study.metric
    metric = metric.rpartition(".")[2] or metric
    lower = metric in QUANTITIES or study.lower_is_better
    values = {arm.name: _values(arm, metric) for arm in study.arms}
    alphas = [claim.alpha] * len(claim.all_of)
    alphas += [claim.alpha / len(claim.any_of) for _ in claim.any_of]
    judged = tuple(
        _statement(statement, study, values, alpha, lower)
        for statement, alpha in zip(claim.statements, alphas, strict=True)
    )
    reasons = tuple(_in_the_way(claim, study))
    word = UNDECIDED if reasons else _together(claim, judged)
    return Verdict(claim, word, judged, reasons)


def _together(claim: ClaimFile, judged: Sequence[Judged]) -> Word:
    words = [one.verdict for one in judged]
    every, some = words[: len(claim.all_of)], words[len(claim.all_of) :]
    parts: list[Word] = []
    if every:
        parts.append(_all(every))
    if some:
        opposite = {SUPPORTED: NOT_SUPPORTED, NOT_SUPPORTED: SUPPORTED, UNDECIDED: UNDECIDED}
        parts.append(opposite[_all([opposite[word] for word in some])])
    return _all(parts)


def _all(words: Sequence[Word]) -> Word:
    """Whether all hold: false if one is false, open if none is false and one is open."""
    if NOT_SUPPORTED in words:
        return NOT_SUPPORTED
    return UNDECIDED if UNDECIDED in words else SUPPORTED


def _values(arm: Arm, metric: str) -> dict[int, float]:
    """Seed -> the figure of every finished run."""
    if metric not in QUANTITIES:
        return arm.values(metric)
    found = {run.seed: run.realised.get(metric) for run in arm.finished}
    if all(v is None for v in found.values()) and known(arm.costs.get(metric)):
        return dict.fromkeys(found, float(arm.costs[metric]))
    return {seed: float(v) for seed, v in found.items() if v is not None and known(v)}


def _in_the_way(claim: ClaimFile, study: Study) -> list[str]:
    """Reasons that keep any figures from answering."""
    found = []
    if study.is_smoke:
        found.append("this is the smoke size of the study, which says nothing about the claim")
    if study.is_as_published:
        found.append("the study repeats a published design, with its faults")
    for quantity in claim.equal:
        named = {name for statement in claim.statements for name in statement.arms}
        sizes = [v for n in sorted(named) if (v := study.arm(n).mean(quantity)) is not None]
        tolerance = next((m.tolerance for m in study.match if m.quantity == quantity), 0.01)
        if not sizes:
            found.append(f"{quantity}, which should be equal, was not measured")
        elif max(sizes) > (1 + tolerance) * min(sizes):
            spread = max(sizes) / min(sizes) - 1
            found.append(
                f"{quantity} should be equal, but differs by {100 * spread:.1f} % between the arms"
            )
    return found


# --- one statement ------------------------------------------------------------------------------


def _statement(
    statement: Statement, study: Study, values: Mapping[str, Mapping[int, float]], alpha: float,
    lower_is_better: bool,
) -> Judged:  # fmt: skip
    for name in statement.arms:
        arm = study.arm(name)
        if arm.why_not:
            return Judged(statement, UNDECIDED, reason=f"{name} is not ranked: {arm.why_not}")
        if not values[name]:
            return Judged(statement, UNDECIDED, reason=f"{name} has no finished run")
    if statement.differ:
        pairs = list(combinations(statement.differ, 2))
        alpha /= len(pairs)
    else:
        assert statement.arm is not None
        pairs = [(statement.arm, other) for other in statement.others]
    known_values = {name: runs for name, runs in values.items() if runs}
    comparison = stats.compare_arms(known_values, alpha=alpha, lower_is_better=lower_is_better)
    compared = tuple(
        _compare(comparison, a, b, statement, alpha, lower_is_better) for a, b in pairs
    )
    if any(one.low is None for one in compared):
        short = next(one for one in compared if one.low is None)
        reason = f"{short.first} and {short.second} have fewer than two seeds in common"
        return Judged(statement, UNDECIDED, compared, reason)
    rule = _differ if statement.differ else _ahead
    return Judged(statement, rule(statement, compared), compared)


def _compare(
    comparison: stats.ArmComparison, first: str, second: str, statement: Statement, alpha: float,
    lower_is_better: bool,
) -> Compared:  # fmt: skip
    d = comparison.pair(first, second).difference
    sign = -1.0 if lower_is_better else 1.0
    ends = sorted(sign * end for end in (d.low, d.high) if end is not None)
    advantage = sign * d.mean
    low, high = ends if ends else (None, None)
    margin = -statement.by if statement.not_worse_than else statement.by
    gap = abs(advantage) - margin if statement.differ else advantage - margin
    needed = None
    if comparison.residual_sd and gap > 0:
        spread = stats.sd_of_difference(comparison.residual_sd)
        needed = stats.seeds_needed(gap, spread, alpha=alpha, n_arms=len(comparison.arms))
    return Compared(first, second, advantage, low, high, d.n, needed)


def _ahead(statement: Statement, compared: Sequence[Compared]) -> Word:
    margin = -statement.by if statement.not_worse_than else statement.by
    words: list[Word] = []
    for one in compared:
        assert one.low is not None and one.high is not None
        is_ahead, is_not = one.low > margin, one.high < margin
        words.append(SUPPORTED if is_ahead else NOT_SUPPORTED if is_not else UNDECIDED)
    return _all(words)


def _differ(statement: Statement, compared: Sequence[Compared]) -> Word:
    ends = [(c.low, c.high) for c in compared if c.low is not None and c.high is not None]
    if any(low > statement.by or high < -statement.by for low, high in ends):
        return SUPPORTED
    if all(-statement.by < low and high < statement.by for low, high in ends):
        return NOT_SUPPORTED
    return UNDECIDED
