"""The picture of a comparison: one figure by steps, tokens, FLOPs and seconds.

Each arm has a colour; seeds are thin lines, their mean is a bold one. Reads the summary alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mixlab.core import units
from mixlab.core.json_files import write_bytes_atomically
from mixlab.report.panel import FAINT, INK, headline, name_panel, png, say_empty, short_count, style

# Okabe and Ito's palette: told apart by colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B4A8A", "#8C6D1F")
_AXES = (("steps", "steps"), ("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds"))
_TITLES = {
    "loss_nats": "Validation loss",
    "bits_per_byte": "Validation loss",
    "exact_accuracy": "Validation puzzles solved",
}

Row = Mapping[str, Any]


def write_comparison_plots(summary: Row, path: Path) -> Path:
    """Draw the summary of a comparison into a PNG."""
    return write_bytes_atomically(path, png(comparison_plots(summary)))


def comparison_plots(summary: Row) -> Figure:
    """The 2 x 2 picture."""
    figure = Figure(figsize=(12, 8.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.02, hspace=0.03)
    metric, arms = summary["metric"], summary["arms"]
    n = len(summary["seeds"])
    headline(
        figure, " against ".join(a["name"] for a in arms if a["role"] == "arm"),
        f"{n} seed{'' if n == 1 else 's'}; thin: one seed, bold: mean",
    )  # fmt: skip
    grid = figure.subplots(2, 2)
    for ax, (key, label) in zip(grid.flat, _AXES, strict=True):
        style(ax)
        name_panel(ax, f"{_TITLES[metric['name']]} by {label}", metric["unit"])
        _draw_arms(ax, arms, key, metric["name"])
        ax.set_xlabel(label, fontsize=9, color=FAINT)
    _frame(grid, summary)
    handles = [
        Line2D([], [], color=_color(i), linewidth=2.4, linestyle=_dash(arm), label=arm["name"])
        for i, arm in enumerate(arms)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(3, len(arms)), frameon=False,
        fontsize=10, labelcolor=INK,
    )  # fmt: skip
    return figure


def _draw_arms(ax: Axes, arms: Sequence[Row], key: str, metric: str) -> None:
    any_drawn = False
    for i, arm in enumerate(arms):
        lines = [
            line for run in arm["runs"] if (line := _line(run["curves"], key, metric)) is not None
        ]
        if not lines:
            continue
        any_drawn = True
        for x, y in lines if len(lines) > 1 else ():
            ax.plot(x, y, color=_color(i), linewidth=0.8, alpha=0.45, linestyle=_dash(arm))
        x, y = _mean(lines)
        ax.plot(x, y, color=_color(i), linewidth=2.4, linestyle=_dash(arm))
        ax.plot(x[-1:], y[-1:], color=_color(i), marker="o", markersize=5)
    if not any_drawn:
        say_empty(ax, "not recorded")
        return
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    form = units.flops if key == "flops" else short_count
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: form(v)))


def _line(curves: Row, key: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Finite points of one run; from the first evaluation after step 0 if there are others."""
    x, y = curves.get(key), curves.get(metric)
    if not x or not y:
        return None
    points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if not points:
        return None
    xs, ys = np.array(points, dtype=float).T
    return xs, ys


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds: point by point where all have as many evaluations."""
    if len({len(x) for x, _ in lines}) == 1:
        return np.mean([x for x, _ in lines], axis=0), np.mean([y for _, y in lines], axis=0)
    end = min(x[-1] for x, _ in lines)
    at = np.linspace(max(x[0] for x, _ in lines), end, 200)
    return at, np.mean([np.interp(at, x, y) for x, y in lines], axis=0)


def _frame(grid: Any, summary: Row) -> None:
    """One range of values for all panels, from where curves are informative; context lines."""
    metric = summary["metric"]["name"]
    ends, values = [], []
    for arm in summary["arms"]:
        for run in arm["runs"]:
            line = _line(run["curves"], "steps", metric)
            if line is not None:
                values.extend(line[1][1:] if len(line[1]) > 1 else line[1])
                ends.append(line[1][-1])
    if not values:
        return
    context = _context(summary)
    if metric == "exact_accuracy":
        for ax in grid.flat:
            ax.set_ylim(0, 1.02)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
        return
    low, high = min(values), max(values)
    shown = [(name, nats) for name, nats in context if low - (high - low) < nats]
    top = max([high, *(nats for _, nats in shown if nats <= high + 0.6 * (high - low))])
    room = 0.06 * (top - low) or 0.1
    for ax in grid.flat:
        ax.set_ylim(low - room, top + 1.6 * room)
        for name, nats in shown:
            if not low - room <= nats <= top + room:
                continue
            ax.axhline(nats, color=FAINT, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
            ax.annotate(
                f"{name} {nats:.2f}", (1, nats), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color=FAINT,
            )  # fmt: skip


def _context(summary: Row) -> list[tuple[str, float]]:
    """Losses of trivial models, in the unit of the metric."""
    if summary["metric"]["name"] != "loss_nats":
        return []
    names = {"ln_vocab_nats": "ln V (uniform guess)", "unigram_entropy_nats": "unigram entropy"}
    return [(names[key], v) for key in names if (v := summary["context"].get(key)) is not None]


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def _dash(arm: Row) -> Any:
    return (0, (4, 1.6)) if arm["role"] == "control" else "-"
