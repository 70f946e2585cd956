"""Which arms nothing else beats in both cost and loss, and how sure that is.

An arm is on the front if no other arm has at most its cost and at most its loss, and less of one of
them. Bands come from resampling seeds: in each draw every arm keeps the seeds that were drawn, so
that arms stay paired.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mixlab.stats.bootstrap import Band, Floats

BySeed = Mapping[int, float]


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the arms on the front, cheapest first; of equal arms the first stands for all."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], losses[i], i))
    front: list[int] = []
    for i in order:
        if not front or losses[i] < losses[front[-1]]:
            front.append(i)
    return front


def front_share(
    costs: Mapping[str, BySeed], losses: Mapping[str, BySeed], *, n_boot: int = 2000, seed: int = 0
) -> dict[str, float]:
    """For each arm the share of bootstrap draws in which it is on the front."""
    cost, loss = _drawn(costs, losses, n_boot, seed)
    # (draw, arm, rival): the rival is nowhere worse and somewhere better.
    no_worse = (cost[:, None] <= cost[:, :, None]) & (loss[:, None] <= loss[:, :, None])
    better = (cost[:, None] < cost[:, :, None]) | (loss[:, None] < loss[:, :, None])
    is_on = ~(no_worse & better).any(axis=2)
    return dict(zip(losses, is_on.mean(axis=0).tolist(), strict=True))


def front_band(
    costs: Mapping[str, BySeed],
    losses: Mapping[str, BySeed],
    grid: ArrayLike,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> Band:
    """The lowest mean loss that each cost of `grid` buys, with the band of the draws.

    Where no arm is as cheap as that, the entries are nan.
    """
    at = np.asarray(grid, dtype=float)
    mean = _front_at(
        *(np.array([[np.mean(list(x[a].values())) for a in losses]]) for x in (costs, losses)), at
    )[0]
    drawn = _front_at(*_drawn(costs, losses, n_boot, seed), at)
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    low, high = np.full_like(at, np.nan), np.full_like(at, np.nan)
    known = np.isfinite(drawn).any(axis=0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low[known], high[known] = np.nanquantile(drawn[:, known], tails, axis=0)
    mean = np.where(np.isfinite(mean), mean, np.nan)
    return Band(mean.tolist(), low.tolist(), high.tolist())


def _front_at(cost: Floats, loss: Floats, at: Floats) -> Floats:
    """(draws, points): the lowest loss of the arms that cost at most that; inf if none does."""
    affordable = cost[:, :, None] <= at
    return np.where(affordable, loss[:, :, None], np.inf).min(axis=1)


def _drawn(
    costs: Mapping[str, BySeed], losses: Mapping[str, BySeed], n_boot: int, seed: int
) -> tuple[Floats, Floats]:
    """(draws, arms) mean cost and mean loss of each arm over the seeds of each draw.

    A draw is a weight for every seed of the study. Where an arm has none of the seeds that were
    drawn, its own are taken all.
    """
    seeds = sorted({s for runs in losses.values() for s in runs})
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), n_boot).astype(float)
    columns = []
    for by_seed in (costs, losses):
        means = []
        for arm in losses:
            has = np.array([s in by_seed[arm] for s in seeds], dtype=float)
            x = np.array([by_seed[arm].get(s, 0.0) for s in seeds])
            w = weights * has
            w = np.where(w.sum(axis=1, keepdims=True) > 0, w, has)
            means.append(w @ x / w.sum(axis=1))
        columns.append(np.stack(means, axis=1))
    return columns[0], columns[1]
