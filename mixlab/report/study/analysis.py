"""The statistics of a study: who is better than whom, how noisy it is, and what it cost."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixlab import stats
from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json
from mixlab.report.study.material import Arm, Study, known

NEEDED_FOR = (0.01, 0.02, 0.05, 0.1)
"""Effects, in the metric's unit, for which the number of seeds is said if the study names none."""
FRONT_COSTS = (
    "flops", "seconds", "memory_bytes", "memory_estimate", "decode_flops", "decode_ms",
    "state_bytes",
)  # fmt: skip
TIMES = ("seconds", "decode_ms")
"""Costs that other work on the machine changes."""
UNEVEN = 1.25
"""Equal runs of an arm take as much longer than each other where times tell of the arms no more."""


@dataclass(frozen=True)
class Standing:
    """One arm in the order of the leaderboard."""

    arm: Arm
    rank: int | None
    """1 + the arms that are significantly better; None if the arm is not ranked."""
    letters: str
    """Of its tie groups."""
    summary: stats.ArmSummary | None
    """None before a run has finished."""
    against_base: stats.Pair | None
    """This arm minus the base arm."""
    effect: stats.Effect | None
    """The same in other units, for a loss in nats."""


@dataclass(frozen=True)
class Front:
    """The best metric that each amount of one cost buys."""

    cost: str
    costs: Mapping[str, float]
    means: Mapping[str, float]
    on_front: tuple[str, ...]
    shares: Mapping[str, float]
    """Share of the bootstrap draws in which the arm is on the front."""
    grid: tuple[float, ...]
    band: stats.Band


@dataclass(frozen=True)
class Analysis:
    """Everything that the report says, as numbers."""

    study: Study
    standings: tuple[Standing, ...]
    comparison: stats.ArmComparison | None
    """Of the ranked arms; None before any has a finished run."""
    floor: stats.NoiseFloor | None
    """Of the base arm."""
    sd_of_differences: float | None
    n_seeds: int
    """Seeds that most ranked arms have."""
    detectable: float | None
    """The true difference that is found in 8 of 10 such studies."""
    needed: tuple[tuple[float, int | None], ...]
    """(effect, seeds that would find it; None if more than 1,000)."""
    fronts: tuple[Front, ...]
    flat_costs: tuple[str, ...]
    """Costs in which the arms differ by less than 2 %: a front would say nothing."""
    uneven_times: Mapping[str, float]
    """Times that other work on the machine changed -> how many times as long as an equal run of its
    arm some run took. They are of no use to compare arms."""

    @property
    def ranked(self) -> list[Standing]:
        return [s for s in self.standings if s.rank is not None]

    @property
    def n_compared(self) -> int:
        return len(self.comparison.arms) if self.comparison else 0


def analyse(study: Study, folder: Path | None = None) -> Analysis:
    """Judge the finished runs; `folder` is where the losses by document lie, if they count."""
    values = {
        arm.name: found
        for arm in study.arms
        if not arm.why_not and (found := arm.values(study.metric))
    }
    documents = _documents(study, values, folder)
    comparison = (
        stats.compare_arms(
            values, alpha=study.alpha, lower_is_better=study.lower_is_better, documents=documents
        )
        if values
        else None
    )
    base_values = study.arm(study.base).values(study.metric) if study.arms else {}
    floor = stats.noise_floor(list(base_values.values())) if base_values else None
    sd = _sd_of_differences(comparison, floor)
    # Of most arms: one failed run must not make the whole study look smaller than it is.
    n_seeds = sorted(len(v) for v in values.values())[len(values) // 2] if values else 0
    n_tests = max(1, comparison.n_tested if comparison else 1)
    plan = {"alpha": study.alpha, "n_comparisons": n_tests, "n_arms": max(2, len(values))}
    wanted = (study.effect,) if study.effect else NEEDED_FOR
    uneven = _uneven_times(study)
    fronts, flat = _fronts(study, values, [cost for cost in FRONT_COSTS if cost not in uneven])
    return Analysis(
        study=study,
        standings=tuple(_standings(study, comparison)),
        comparison=comparison,
        floor=floor,
        sd_of_differences=sd,
        n_seeds=n_seeds,
        detectable=stats.smallest_detectable(sd, n_seeds, **plan) if sd else None,
        needed=tuple((e, stats.seeds_needed(e, sd, **plan)) for e in wanted) if sd else (),
        fronts=tuple(fronts),
        flat_costs=tuple(flat),
        uneven_times=uneven,
    )


def _sd_of_differences(
    comparison: stats.ArmComparison | None, floor: stats.NoiseFloor | None
) -> float | None:
    """Of one seed between two arms: from all arms, or before that from the base arm alone."""
    if comparison is not None and comparison.residual_sd is not None and len(comparison.arms) > 1:
        return stats.sd_of_difference(comparison.residual_sd)
    if floor is not None and floor.sd is not None:
        return stats.sd_of_difference(floor.sd)
    return None


def _standings(study: Study, comparison: stats.ArmComparison | None) -> Iterator[Standing]:
    """Ranked arms best first, then the others in the order of the study."""
    compared = [s.name for s in comparison.arms] if comparison else []
    ranks = _ranks(comparison) if comparison else {}
    for name in compared:
        assert comparison is not None
        pair = None
        if name != study.base and study.base in compared:
            pair = comparison.pair(name, study.base)
        effect = None
        if pair is not None and study.metric == "loss_nats":
            base, mean = comparison.arm(study.base).mean, comparison.arm(study.base).mean
            # Over the seeds that both have, so that all units tell of the same runs.
            if pair.difference.seeds:
                base_values = comparison.arm(study.base).values
                base = float(np.mean([base_values[seed] for seed in pair.difference.seeds]))
            mean = base + pair.difference.mean
            effect = stats.effect(base, mean, study.bytes_per_token)
        summary = comparison.arm(name)
        letters = summary.letters if name in ranks else ""
        yield Standing(study.arm(name), ranks.get(name), letters, summary, pair, effect)
    for arm in study.arms:
        if arm.name not in compared:
            values = arm.values(study.metric)
            summary = stats.compare_arms({arm.name: values}).arms[0] if values else None
            yield Standing(arm, None, "", summary, None, None)


def _ranks(comparison: stats.ArmComparison) -> dict[str, int]:
    """1 + the arms that are significantly better, and never more than an arm with a worse mean.

    Without a test there are no ranks: the order is that of the means, and no more.
    """
    if comparison.n_tested == 0:
        return {}
    better = Counter(pair.second for pair in comparison.pairs if pair.is_different)
    ranks: dict[str, int] = {}
    least = len(comparison.arms)
    for arm in reversed(comparison.arms):
        least = min(least, 1 + better[arm.name])
        ranks[arm.name] = least
    return ranks


def _documents(
    study: Study, values: Mapping[str, Mapping[int, float]], folder: Path | None
) -> dict[str, dict[int, stats.DocumentLosses]] | None:
    """Losses by document of every run, where there are seeds enough for them to count."""
    least = min((len(v) for v in values.values()), default=0)
    if folder is None or least < 8 or study.metric != "loss_nats":
        return None
    found: dict[str, dict[int, stats.DocumentLosses]] = {}
    for name, by_seed in values.items():
        runs = {run.seed: run for run in study.arm(name).finished}
        for seed in by_seed:
            try:
                tree = read_json(folder / runs[seed].documents) if runs[seed].documents else None
            except LabError:
                tree = None
            if not tree:
                return None
            found.setdefault(name, {})[seed] = stats.DocumentLosses(
                np.array(tree["nats"], dtype=float), np.array(tree["tokens"], dtype=float)
            )
    sizes = {len(losses.nats) for runs in found.values() for losses in runs.values()}
    return found if len(sizes) == 1 else None


# --- what a metric costs ------------------------------------------------------------------------


def _uneven_times(study: Study) -> dict[str, float]:
    """Times that differ between equal runs of most arms, with the largest ratio of any arm."""
    found = {}
    for cost in TIMES:
        ratios = []
        for arm in study.arms:
            runs = [r for r in (*arm.runs, *arm.tuning) if r.status == "finished"]
            steps = {run.realised.get("steps") for run in runs}
            times = [t for run in runs if known(t := run.realised.get(cost)) and t > 0]
            if len(steps) == 1 and len(times) > 1:
                ratios.append(max(times) / min(times))
        if ratios and float(np.median(ratios)) > UNEVEN:
            found[cost] = max(ratios)
    return found


def _fronts(
    study: Study, values: Mapping[str, Mapping[int, float]], candidates: Sequence[str]
) -> tuple[list[Front], list[str]]:
    """A front for every cost that is known of all compared arms and differs between them."""
    fronts, flat = [], []
    if len(values) < 2:
        return fronts, flat
    sign = 1.0 if study.lower_is_better else -1.0
    losses = {name: {s: sign * v for s, v in runs.items()} for name, runs in values.items()}
    for cost in candidates:
        by_seed = {name: _cost_by_seed(study.arm(name), cost, values[name]) for name in values}
        if any(not costs for costs in by_seed.values()):
            continue
        if cost == "memory_estimate" and any(f.cost == "memory_bytes" for f in fronts):
            continue
        means = {name: float(np.mean(list(costs.values()))) for name, costs in by_seed.items()}
        if max(means.values()) <= 1.02 * min(means.values()):
            flat.append(cost)
            continue
        fronts.append(_front(cost, means, by_seed, losses, sign))
    return fronts, flat


def _front(
    cost: str, means: Mapping[str, float], by_seed: Mapping[str, Mapping[int, float]],
    losses: Mapping[str, Mapping[int, float]], sign: float,
) -> Front:  # fmt: skip
    names = list(losses)
    quality = {name: float(np.mean(list(losses[name].values()))) for name in names}
    on = stats.pareto_front([means[n] for n in names], [quality[n] for n in names])
    low, high = min(means.values()), max(means.values())
    grid = np.unique([*np.geomspace(low, high, 40), *sorted(means.values())])
    band = stats.front_band(by_seed, losses, grid)
    if sign < 0:
        band = stats.Band(*([-v for v in side] for side in (band.mean, band.high, band.low)))
    return Front(
        cost=cost,
        costs=means,
        means={name: sign * q for name, q in quality.items()},
        on_front=tuple(names[i] for i in on),
        shares=stats.front_share(by_seed, losses),
        grid=tuple(map(float, grid)),
        band=band,
    )


def _cost_by_seed(arm: Arm, cost: str, values: Mapping[int, float]) -> dict[int, float]:
    """The cost of each run, or the arm's own cost for all of them; empty if neither is known."""
    runs = {run.seed: run.realised.get(cost) for run in arm.finished if run.seed in values}
    if runs and all(known(v) for v in runs.values()):
        return {seed: float(v) for seed, v in runs.items() if v is not None}
    if known(arm.costs.get(cost)):
        return dict.fromkeys(values, float(arm.costs[cost]))
    return {}
