"""The curve picture of a run: train loss, validation loss, accuracy and perplexity.

Drawn with matplotlib's objects (no pyplot: no display, no global state). The same numbers give the
same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixlab.core import units
from mixlab.core.json_files import write_bytes_atomically
from mixlab.core.run_dir import Columns, RunDir
from mixlab.report.panel import (
    FAINT,
    INK,
    N_DRAWN,
    end_label,
    headline,
    name_panel,
    png,
    say_empty,
    say_unit,
    step_axis,
    style,
    token_axis,
)
from mixlab.report.series import Floats, Series, envelope, series, smooth, thin, where

# Okabe and Ito's palette: told apart by colour-blind readers, and by their lightness in print.
_TRAIN, _VALIDATION, _EMA, _ACCURACY = "#0072B2", "#D55E00", "#CC79A7", "#009E73"


class Context(NamedTuple):
    """A horizontal line that says what a loss is worth."""

    label: str
    nats: float


def write_training_curves(run: RunDir) -> Path:
    """Write plots/training_curves.png of a run in any state; returns its path."""
    summary = run.read_json("summary.json") or {}
    figure = training_curves(
        run.metrics(), run.evals(), title=run.name, n_params=summary.get("n_params"),
        context=context_lines(summary),
    )  # fmt: skip
    return write_bytes_atomically(run.curves_path, png(figure))


def context_lines(summary: Mapping[str, Any]) -> list[Context]:
    """What the summary knows of the trivial models' losses."""
    names = {"ln_vocab_nats": "ln V (uniform guess)", "unigram_entropy_nats": "unigram entropy"}
    known = summary.get("context") or {}
    return [
        Context(label, float(known[key]))
        for key, label in names.items()
        if isinstance(known.get(key), int | float) and math.isfinite(known[key])
    ]


def training_curves(
    metrics: Columns,
    evals: Columns,
    *,
    title: str,
    n_params: int | None = None,
    context: Sequence[Context] = (),
) -> Figure:
    """The 2 x 2 picture; any part may be empty."""
    train = series(metrics, "tokens", "loss_nats")
    validation = where(evals, split="validation")
    kinds = [kind for kind in ("raw", "ema") if kind in validation.get("weights", [])]
    by_weights = {kind: where(validation, weights=kind) for kind in kinds} or {"raw": validation}

    figure = Figure(figsize=(11, 7.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.02, hspace=0.03)
    grid = figure.subplots(2, 2)
    headline(figure, title, _facts(n_params, metrics, evals))
    for ax in grid.flat:
        style(ax)

    smoothed = smooth(train, max(1, len(train.x) // 60))
    _train_panel(grid[0, 0], train, smoothed)
    loss, accuracy, perplexity = grid[0, 1], grid[1, 0], grid[1, 1]
    name_panel(loss, "Validation loss", "nats per token")
    _context(loss, _draw(loss, by_weights, "loss_nats", _VALIDATION), context)
    if "exact_accuracy" in validation:
        name_panel(accuracy, "Validation puzzles solved", "every cell right")
        _percent_axis(accuracy, _draw(accuracy, by_weights, "exact_accuracy", _ACCURACY))
        name_panel(perplexity, "Blank cells right", "validation puzzles")
        _percent_axis(perplexity, _draw(perplexity, by_weights, "blank_accuracy", _ACCURACY))
    else:
        name_panel(accuracy, "Validation accuracy", "next token right")
        _percent_axis(accuracy, _draw(accuracy, by_weights, "accuracy", _ACCURACY))
        name_panel(perplexity, "Validation perplexity", "log scale")
        _log_axis(perplexity, _draw(perplexity, by_weights, "perplexity", _VALIDATION))

    x_end = max([0.0, *train.x, *series(validation, "tokens", "loss_nats").x])
    for ax in grid.flat:
        token_axis(ax, x_end)
    for ax in grid[0]:
        step_axis(ax, series(metrics, "tokens", "step"))
    return figure


# --- panels -------------------------------------------------------------------------------------


def _facts(n_params: int | None, metrics: Columns, evals: Columns) -> str:
    facts = []
    if n_params:
        facts.append(f"{units.count(n_params)} parameters")
    for name in ("tokens", "step"):
        last = [v for v in (metrics.get(name) or evals.get(name) or []) if v is not None][-1:]
        facts.extend(f"{units.count(v)} {name.rstrip('s')}{'' if v == 1 else 's'}" for v in last)
    return ",  ".join(facts)


def _train_panel(ax: Axes, train: Series, smoothed: Series) -> None:
    name_panel(ax, "Training loss", "nats per token; faint: single steps")
    if len(smoothed.x) == 0:
        say_empty(ax, "no training step yet" if len(train.x) == 0 else "no finite loss")
        return
    if len(train.x) <= N_DRAWN:
        ax.plot(train.x, train.y, color=_TRAIN, alpha=0.25, linewidth=0.8)
    else:
        x, low, high = envelope(train, N_DRAWN // 2)
        ax.fill_between(x, low, high, color=_TRAIN, alpha=0.2, linewidth=0)
    line = thin(smoothed, N_DRAWN)
    marker = "o" if len(line.x) < 3 else None
    ax.plot(line.x, line.y, color=_TRAIN, linewidth=1.8, marker=marker, clip_on=False)
    end_label(ax, line, f"{line.y[-1]:.2f}", _TRAIN)
    _mark_non_finite(ax, train)


def _draw(ax: Axes, by_weights: Mapping[str, Columns], key: str, color: str) -> Floats:
    """One quantity of the validation rows, once per kind of weights; its finite values."""
    lines = {
        kind: line
        for kind, rows in by_weights.items()
        if len((line := _capped(series(rows, "tokens", key))).finite.x)
    }
    if not lines:
        say_empty(ax, "no evaluation yet")
        return np.array([])
    ends = []
    for kind, line in lines.items():
        shade = _EMA if kind == "ema" else color
        marker = "o" if len(line.x) <= 40 else None
        kept = thin(line, N_DRAWN)
        ax.plot(
            kept.x, kept.y, color=shade, linewidth=1.8, marker=marker, markersize=4.5, clip_on=False
        )
        last = line.finite.y[-1]
        text = f"{100 * last:.1f} %" if key.endswith("accuracy") else units.three_digits(last)
        text = f"{last:.2f}" if key == "loss_nats" else text if last < 1e5 else f"{last:.0e}"
        ends.append((line.finite, f"{text} EMA" if kind == "ema" else text, shade))
    # Two ends that nearly meet would print over each other: the upper one moves up.
    ends.sort(key=lambda end: end[0].y[-1])
    for rank, (line, text, shade) in enumerate(ends):
        shift = 0 if len(ends) == 1 else (-6, 6)[rank]
        end_label(ax, line, text, shade, shift)
    for line in lines.values():
        _mark_non_finite(ax, line)
    return np.concatenate([line.finite.y for line in lines.values()])


def _capped(line: Series) -> Series:
    """Perplexity is an exponential: beyond this a run has failed, and no axis can be labelled."""
    return Series(line.x, np.minimum(line.y, 1e12))


def _context(ax: Axes, values: Floats, context: Sequence[Context]) -> None:
    """Lines of trivial models, where showing them does not squash the curve; else a remark."""
    if len(values) == 0:
        return
    low, high = values.min(), values.max()
    room = 1.2 * (high - low) if len(values) > 1 else math.inf
    far = []
    for label, nats in sorted(context, key=lambda c: c.nats):
        if max(nats - high, low - nats, 0) > room:
            far.append(f"{label.partition(' (')[0]} {nats:.2f}")
            continue
        ax.axhline(nats, color=FAINT, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        ax.annotate(
            f"{label} {nats:.2f}", (1, nats), xycoords=("axes fraction", "data"),
            xytext=(-4, 3), textcoords="offset points", ha="right", va="bottom",
            fontsize=8.5, color=FAINT,
        )  # fmt: skip
    if far:
        say_unit(ax, f"{ax.get_title(loc='right')}; off scale: {', '.join(far)}")
    # Head room for the label of the highest line.
    bottom, top = ax.get_ylim()
    shown = [nats for _, nats in context if nats <= high + room]
    ax.set_ylim(bottom, max([top, *(nats + 0.1 * (top - bottom) for nats in shown)]))


def _mark_non_finite(ax: Axes, line: Series) -> None:
    bad = line.x[~np.isfinite(line.y)]
    if len(bad) == 0:
        return
    ax.axvline(bad[0], color=INK, linewidth=1, linestyle=":")
    ax.annotate(
        "not finite", (bad[0], 0.3), xycoords=("data", "axes fraction"), xytext=(3, 0),
        textcoords="offset points", rotation=90, ha="left", va="top", fontsize=8.5, color=INK,
    )  # fmt: skip


# --- axes of one quantity -----------------------------------------------------------------------


def _percent_axis(ax: Axes, values: Floats) -> None:
    if len(values) == 0:
        return
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))


def _log_axis(ax: Axes, values: Floats) -> None:
    values = values[values > 0]
    if len(values) == 0:
        return
    ax.set_yscale("log")
    span = values.max() / values.min()
    low, high = ax.get_ylim()
    if span < 5:  # too narrow for round powers: evenly spaced round numbers instead
        low, high = values.min() / 1.05, values.max() * 1.05
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if span < 1000 else (1,)
        ticks = np.array([d * 10.0**p for p in powers[:: 1 + len(powers) // 8] for d in digits])
    ax.yaxis.set_major_locator(FixedLocator(ticks[(ticks >= low) & (ticks <= high)]))
    ax.set_ylim(low, high)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}" if y < 1e6 else f"{y:.0e}"))
