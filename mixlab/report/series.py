"""Numbers of a run as lines that can be drawn: cleaned, smoothed and thinned."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """Points of one line, in the order of x; y is NaN where the run recorded no finite number."""

    x: Floats
    y: Floats

    @property
    def finite(self) -> "Series":
        keep = np.isfinite(self.y)
        return Series(self.x[keep], self.y[keep])


def column(rows: Mapping[str, Sequence[Any]], name: str) -> Floats:
    """One column as floats: what is missing or no number becomes NaN."""
    values = rows.get(name)
    if values is None:
        return np.full(max((len(v) for v in rows.values()), default=0), np.nan)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)


def series(rows: Mapping[str, Sequence[Any]], x: str, y: str) -> Series:
    """Column `y` over column `x`; rows without an x are left out."""
    xs, ys = column(rows, x), column(rows, y)
    keep = np.isfinite(xs)
    ys = np.where(np.isfinite(ys), ys, np.nan)
    order = np.argsort(xs[keep], kind="stable")
    return Series(xs[keep][order], ys[keep][order])


def where(rows: Mapping[str, Sequence[Any]], **wanted: Any) -> dict[str, list[Any]]:
    """The rows, as columns, in which every named column has the wanted value."""
    n_rows = max((len(values) for values in rows.values()), default=0)
    keep = [
        i
        for i in range(n_rows)
        if all(name in rows and rows[name][i] == value for name, value in wanted.items())
    ]
    return {name: [values[i] for i in keep] for name, values in rows.items()}


def smooth(line: Series, half_width: int) -> Series:
    """A centred moving average over the finite points.

    The window is as wide on the right as on the left near the start, where loss falls steeply and
    a lopsided window would draw it too low; at the end it keeps its left half, so that the last
    value is a mean and not one noisy step.
    """
    x, y = line.finite
    n = len(y)
    index = np.arange(n)
    left = np.minimum(half_width, index)
    right = np.minimum(left, n - 1 - index)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low, high = index - left, index + right + 1
    return Series(x, (sums[high] - sums[low]) / (high - low))


def thin(line: Series, n_points: int) -> Series:
    """At most `n_points`, evenly chosen, with the first and the last."""
    n = len(line.x)
    if n <= n_points:
        return line
    chosen = np.unique(np.linspace(0, n - 1, n_points).round().astype(int))
    return Series(line.x[chosen], line.y[chosen])


def envelope(line: Series, n_bins: int) -> tuple[Floats, Floats, Floats]:
    """Lowest and highest finite value per bin of neighbouring points: (x, low, high)."""
    x, y = line.finite
    edges = np.unique(np.linspace(0, len(x), n_bins + 1).astype(int))[:-1]
    if len(x) == 0:
        return x, y, y
    return x[edges], np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
