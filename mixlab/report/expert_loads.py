"""What the metrics rows say about experts: load per expert, entropy and largest load, over time.

A load is an expert's share of the tokens times the number of experts: 1 is even, 0 is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixlab.report.series import Floats, column

_PREFIX, _SHARES = "layers.", ".expert_utilization"
_ROWS_PER_BIN = 20  # enough for a mean; a picture of a million rows must not read them all


class Loads(NamedTuple):
    """One layer over time; n time bins of neighbouring rows, E experts."""

    edges: Floats  # (n + 1,) tokens; bin i lies between edges i and i + 1
    load: Floats  # (n, E), mean of the bin's rows; NaN where nothing was recorded
    entropy_frac: Floats  # (n,) router's entropy over that of an indifferent router, ln E
    max_load: Floats  # (n,), mean over the rows of each row's largest load

    @property
    def n_experts(self) -> int:
        return self.load.shape[1]


def moe_layers(metrics: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names of the layers whose rows hold shares per expert, first to last."""
    return sorted(
        name.removeprefix(_PREFIX).removesuffix(_SHARES)
        for name in metrics
        if name.startswith(_PREFIX) and name.endswith(_SHARES)
    )


def expert_loads(
    metrics: Mapping[str, Sequence[Any]], layer: str, n_bins: int, last: int | None = None
) -> Loads | None:
    """One layer's figures in at most `n_bins` bins of its rows, or of the `last` rows alone.

    Rows without a number of tokens are left out; None if no row holds shares.
    """
    x = column(metrics, "tokens")
    raw = metrics.get(f"{_PREFIX}{layer}{_SHARES}") or []
    kept = np.flatnonzero(np.isfinite(x))
    if last is not None:
        kept = kept[-last:]
    n_experts = max((len(v) for v in raw if isinstance(v, list)), default=0)
    if n_experts == 0 or len(kept) == 0:
        return None
    kept = kept[np.argsort(x[kept], kind="stable")]
    bins = np.array_split(kept, min(n_bins, len(kept)))
    chosen = [rows[np.linspace(0, len(rows) - 1, _ROWS_PER_BIN).astype(int)] for rows in bins]
    chosen = [np.unique(rows) for rows in chosen]
    load = np.stack([_mean([_shares(raw[i], n_experts) for i in rows]) for rows in chosen])
    means = [
        np.array([_mean(values[rows]) for rows in chosen])
        for values in (
            _number(metrics, layer, name) for name in ("routing_entropy_frac", "max_load")
        )
    ]
    # A row's shares are of the tokens since the row before it.
    before = x[kept[0] - 1] if kept[0] > 0 and np.isfinite(x[kept[0] - 1]) else 0.0
    edges = np.array([min(before, x[kept[0]]), *(x[rows[-1]] for rows in bins)])
    return Loads(np.maximum.accumulate(edges), load * n_experts, *means)


def _shares(value: Any, n_experts: int) -> Floats:
    if not isinstance(value, list) or len(value) != n_experts:
        return np.full(n_experts, np.nan)
    return np.array([v if isinstance(v, int | float) else np.nan for v in value], dtype=float)


def _number(metrics: Mapping[str, Sequence[Any]], layer: str, name: str) -> Floats:
    found = column(metrics, f"{_PREFIX}{layer}.{name}")
    return np.where(np.isfinite(found), found, np.nan)


def _mean(rows: Any) -> Any:
    """Over the first axis, of what is there; NaN, without a warning, where nothing is."""
    rows = np.asarray(rows, dtype=float)
    n = np.isfinite(rows).sum(axis=0)
    return np.where(n > 0, np.nansum(rows, axis=0) / np.maximum(n, 1), np.nan)
