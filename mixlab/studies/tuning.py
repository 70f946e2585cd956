"""The search for an arm's learning rate, as a pure function of what has been tried.

Rates lie on a grid of half octaves: index 0 is the recipe's rate, 2 twice it, 1 the square root of
2 times it. The search brackets the optimum on even indices (factors of 2) until it lies inside,
then tries its two neighbours at a distance of sqrt(2). Since every decision follows from the
losses alone, a search that was interrupted goes on where it stood.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mixlab.core.config import Tree, flatten, set_path

FIRST = (-2, 0, 2)
DIVERGED = math.inf
"""The value of a rate at which training blew up: worse than any loss, so it bounds the bracket."""


class Search(NamedTuple):
    """Where a search stands."""

    status: Literal["unfinished", "interior", "edge", "failed"]
    wanted: list[int]  # indices to try next
    best: int | None  # index of the best so far


def search(tried: Mapping[int, float | None], *, max_runs: int) -> Search:
    """What to try next.

    `tried` holds the value of every finished index: lower is better, `DIVERGED` where training blew
    up, None where a run failed for another reason.
    """
    missing = [index for index in FIRST if index not in tried]
    good = {index: value for index, value in tried.items() if value is not None}
    finite = {index: value for index, value in good.items() if value < DIVERGED}
    best = min(finite, key=lambda index: (finite[index], index)) if finite else None
    if missing:
        return Search("unfinished", missing, best)
    if len(good) < len(tried):
        return Search("failed", [], best)
    coarse = {index: value for index, value in good.items() if index % 2 == 0}
    lowest, highest = min(coarse), max(coarse)
    middle = min(coarse, key=lambda index: (coarse[index], index))
    if best is None:  # everything diverged: look further down
        step = lowest - 2
    elif middle in (lowest, highest):
        step = middle - 2 if middle == lowest else middle + 2
    else:
        around = [index for index in (middle - 1, middle + 1) if index not in tried]
        return Search("unfinished" if around else "interior", around, best)
    if len(tried) >= max_runs:
        return Search("edge" if best is not None else "failed", [], best)
    return Search("unfinished", [step], best)


def factor(index: int) -> float:
    """The factor on the recipe's rates."""
    return 2.0 ** (index / 2)


def with_rate(config: Tree, index: int) -> Tree:
    """The config with every learning rate of its optimizer multiplied by `factor(index)`."""
    if index == 0:
        return config
    for path, value in flatten(config["train"]["optimizer"], "train.optimizer"):
        if path.rsplit(".", 1)[-1] == "lr" and value is not None:
            config = set_path(config, path.split("."), scaled(value, index))
    return config


def without_rate(config: Tree) -> Tree:
    """The config with its rates as ratios of the first: equal for arms that tuning makes equal."""
    base = config["train"]["optimizer"]["lr"]
    for path, value in flatten(config["train"]["optimizer"], "train.optimizer"):
        if path.rsplit(".", 1)[-1] == "lr" and value is not None:
            config = set_path(config, path.split("."), float(f"{value / base:.6g}"))
    return config


def scaled(lr: float, index: int) -> float:
    """A rate at an index of the grid, with six digits: what is printed is what is used."""
    return float(f"{lr * factor(index):.6g}")


def outcome(row: Mapping[str, Any] | None, *, lower_is_better: bool) -> float | None:
    """The value of one finished job for `search`."""
    if row is None or row["status"] != "done":
        kind = (row or {}).get("error", {}).get("kind")
        return DIVERGED if kind == "diverged" else None
    value = row["value"]
    if value is None:
        return None
    return value if lower_is_better else -value
