"""The picture of a run's experts: who was given how many tokens, layer by layer, over time.

One panel per layer with experts; colour is load relative to even use on a scale of doublings, blue
below and orange above, with a colour of its own for no token at all. Beneath: how undecided the
routers are, and the largest load.
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixlab.core import units
from mixlab.core.json_files import write_bytes_atomically
from mixlab.core.run_dir import Columns, RunDir
from mixlab.report.expert_loads import Loads, expert_loads, moe_layers
from mixlab.report.panel import (
    FAINT,
    INK,
    end_label,
    headline,
    name_panel,
    png,
    say_empty,
    style,
    token_axis,
)
from mixlab.report.series import Floats, Series

_N_BINS = 240  # cells along time; a panel is not much wider in pixels
_NONE, _UNKNOWN = "#000000", "#D0D0D0"
_SHALLOW, _DEEP = "#6BAED6", "#08306B"  # lines of the first and the last layer


def experts_path(run: RunDir) -> Path:
    return run.plots_path / "experts.png"


def write_experts_picture(run: RunDir) -> Path | None:
    """Write plots/experts.png of a run in any state; None if it has no layer with experts."""
    if not _has_experts(run):
        return None
    figure = experts_picture(run.metrics(), title=run.name)
    return write_bytes_atomically(experts_path(run), png(figure))


def _has_experts(run: RunDir) -> bool:
    """Told from the first rows, so that other runs need not be read a second time."""
    if not run.metrics_path.is_file():
        return False
    with run.metrics_path.open("rb") as file:
        return any(b'"expert_utilization"' in line for line in itertools.islice(file, 64))


def experts_picture(metrics: Columns, *, title: str) -> Figure:
    """The picture of all layers with experts."""
    found = {name: expert_loads(metrics, name, _N_BINS) for name in moe_layers(metrics)}
    layers = {name: loads for name, loads in found.items() if loads is not None}
    n_columns = min(4, max(1, len(layers)))
    n_rows = max(1, -(-len(layers) // n_columns))
    most = max((loads.n_experts for loads in layers.values()), default=1)
    panel_height = 1.55 if n_rows > 3 else 1.9 if most <= 8 else 2.5
    heights = [n_rows * panel_height + 0.75, 2.7]

    figure = Figure(figsize=(11, sum(heights)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.07, wspace=0.02, hspace=0.02)
    headline(figure, title, _facts(layers))
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    x_end = max((float(loads.edges[-1]) for loads in layers.values()), default=0.0)
    _heat_maps(upper, layers, n_rows, n_columns, x_end)
    entropy, max_load = lower.subplots(1, 2)
    for ax in (entropy, max_load):
        style(ax)
    name_panel(entropy, "Routing entropy", "share of ln E; 1: the router is indifferent")
    _lines(entropy, layers, "entropy_frac", "{:.2f}")
    entropy.set_ylim(0, 1.03)
    name_panel(max_load, "Largest load", "of one step, over the mean load; 1: even")
    _lines(max_load, layers, "max_load", "{:.2f}")
    max_load.axhline(1, color=FAINT, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    _load_axis(max_load)
    for ax in (entropy, max_load):
        token_axis(ax, x_end)
    return figure


def _facts(layers: Mapping[str, Loads]) -> str:
    numbers = sorted({loads.n_experts for loads in layers.values()})
    if not numbers:
        return ""
    plural = "" if len(layers) == 1 else "s"
    each = " or ".join(str(n) for n in numbers)
    n_tokens = max(loads.edges[-1] for loads in layers.values())
    return f"{len(layers)} layer{plural} with {each} experts,  {units.count(n_tokens)} tokens"


# --- heat maps ----------------------------------------------------------------------------------


def _heat_maps(
    figure: SubFigure, layers: Mapping[str, Loads], n_rows: int, n_columns: int, x_end: float
) -> None:
    grid = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False)
    if not layers:
        for ax in grid.flat:
            style(ax)
            say_empty(ax, "no step recorded")
            token_axis(ax, 0)
        return
    limit = color_limit(np.concatenate([loads.load.ravel() for loads in layers.values()]))
    cmap, norm = _colors(), LogNorm(1 / limit, limit)
    image = None
    for index, (ax, (name, loads)) in enumerate(zip(grid.flat, layers.items(), strict=False)):
        style(ax)
        ax.grid(visible=False)
        ax.set_title(name.replace("_", " "), loc="left", fontsize=10, color=INK, pad=4)
        image = _heat_map(ax, loads, cmap, norm)
        token_axis(ax, x_end)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        is_lowest = index + n_columns >= len(layers)
        ax.tick_params(labelbottom=is_lowest)
        if not is_lowest:
            ax.set_xlabel("")
        if index % n_columns == 0:
            ax.set_ylabel("expert", fontsize=9, color=FAINT)
    for ax in grid.flat[len(layers) :]:
        ax.set_visible(False)
    _color_bar(figure, image, grid, limit)


def _heat_map(ax: Axes, loads: Loads, cmap: Colormap, norm: LogNorm):
    n = loads.n_experts
    cells = loads.load.T  # (E, n)
    # The scale's lowest value stands for all that is low; below it is only what is zero.
    shown = np.where(cells > 0, np.maximum(cells, norm.vmin), np.where(cells == 0, 1e-9, np.nan))
    rising = np.concatenate([[True], np.diff(loads.edges) > 0])  # equal edges have no width
    image = ax.pcolorfast(
        loads.edges[rising], np.arange(n + 1) - 0.5,
        np.ma.masked_invalid(shown[:, rising[1:]]), cmap=cmap, norm=norm,
    )  # fmt: skip
    ax.set_ylim(n - 0.5, -0.5)
    step = max(1, 2 ** math.ceil(math.log2(n / 8)))
    ax.yaxis.set_major_locator(FixedLocator(range(0, n, step)))
    return image


def color_limit(loads: Floats) -> float:
    """The scale runs from 1 / limit to limit: a power of 2 from 2 to 8 that holds most loads."""
    known = loads[np.isfinite(loads) & (loads > 0)]
    if len(known) == 0:
        return 2.0
    doublings = np.quantile(np.abs(np.log2(known)), 0.98)
    return 2.0 ** min(3, max(1, math.ceil(doublings - 0.1)))


def _colors() -> Colormap:
    stops = ["#084594", "#3A8BC8", "#F7F7F7", "#E07B2A", "#8C3A00"]
    places = [0, 0.2, 0.5, 0.8, 1]
    cmap = LinearSegmentedColormap.from_list("load", list(zip(places, stops, strict=True)))
    return cmap.with_extremes(under=_NONE, over=stops[-1], bad=_UNKNOWN)


def _color_bar(figure: SubFigure, image, grid: np.ndarray, limit: float) -> None:
    bar = figure.colorbar(
        image, ax=list(grid.flat), extend="min", extendfrac=0.06, pad=0.015,
        aspect=22, shrink=min(0.95, 2.2 / grid.shape[0]),
    )  # fmt: skip
    doublings = round(math.log2(limit))
    ticks = [2.0**i for i in range(-doublings, doublings + 1)]
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _fraction(y)))
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    bar.outline.set_visible(False)
    bar.set_label("load, 1 = even; black: no token", fontsize=9, color=FAINT)


def _fraction(y: float) -> str:
    return f"{y:.0f}" if y >= 1 else f"1/{1 / y:.0f}"


# --- lines --------------------------------------------------------------------------------------


def _lines(ax: Axes, layers: Mapping[str, Loads], name: str, form: str) -> None:
    """One line per layer, darker with depth; the first and the last are named."""
    shades = LinearSegmentedColormap.from_list("depth", [_SHALLOW, _DEEP])
    drawn = []
    for index, (layer, loads) in enumerate(layers.items()):
        line = Series(loads.edges[1:], getattr(loads, name))
        if len(line.finite.x) == 0:
            continue
        color = shades(index / max(1, len(layers) - 1)) if len(layers) > 1 else _DEEP
        marker = "o" if len(line.finite.x) < 3 else None
        ax.plot(line.x, line.y, color=color, linewidth=1.4, marker=marker, clip_on=False)
        drawn.append((layer, line.finite, color))
    if not drawn:
        say_empty(ax, "nothing recorded")
        return
    ends = [drawn[0], drawn[-1]] if len(drawn) > 1 else drawn
    ends.sort(key=lambda end: end[1].y[-1])
    for rank, (layer, line, color) in enumerate(ends):
        shift = 0 if len(ends) == 1 else (-6, 6)[rank]
        text = f"{form.format(line.y[-1])} {layer.replace('_', ' ')}"
        end_label(ax, line, text, color, shift)


def _load_axis(ax: Axes) -> None:
    """From just below even on; in doublings where some expert was far above."""
    top = ax.get_ylim()[1]
    ax.set_ylim(0.9, max(top, 1.5))
    if top > 4:
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_locator(FixedLocator([2.0**i for i in range(12)]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f}"))
