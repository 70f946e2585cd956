"""Parts that every picture of a run is made of: colours, titles, axes, labels, the file's bytes.

Drawn with matplotlib's objects (no pyplot: no display, no global state). The same numbers give the
same bytes.
"""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mixlab.report.series import Series, thin

INK, FAINT, GRID = "#222222", "#777777", "#E6E6E6"
N_DRAWN = 2000
"""Points per line; more cannot be told apart at this size."""


def png(figure: Figure, compression: int = 6) -> bytes:
    """The picture as a file; a lower `compression` is quicker and larger."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=130, pil_kwargs={"compress_level": compression},
        # matplotlib puts its version into the file; without it equal pictures are equal bytes.
        metadata={"Software": None},
    )  # fmt: skip
    return buffer.getvalue()


def headline(figure: Figure, title: str, facts: str) -> None:
    """The run's name at the left, what it amounts to at the right."""
    short = title if len(title) <= 48 else f"{title[:45]}..."
    # A `$` in a run's name is no formula.
    figure.suptitle(
        short, x=0.012, ha="left", fontsize=15, weight="bold", color=INK, parse_math=False
    )
    figure.text(0.988, 0.985, facts, ha="right", va="top", fontsize=11, color=FAINT)


def style(ax: Axes) -> None:
    ax.set_facecolor("white")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def name_panel(ax: Axes, name: str, unit: str) -> None:
    ax.set_title(name, loc="left", fontsize=11.5, color=INK, pad=8)
    say_unit(ax, unit)


def say_unit(ax: Axes, unit: str) -> None:
    ax.set_title(unit, loc="right", fontsize=9, color=FAINT, pad=8)


def say_empty(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", color=FAINT, fontsize=11)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def end_label(ax: Axes, line: Series, text: str, color: str, shift: float = 0) -> None:
    """The last value, beside the end of its line: read without a legend."""
    ax.annotate(
        text, (line.x[-1], line.y[-1]), xytext=(7, shift), textcoords="offset points",
        ha="left", va="center", fontsize=10, weight="bold", color=color, annotation_clip=False,
    )  # fmt: skip


def token_axis(ax: Axes, x_end: float) -> None:
    ax.set_xlim(0, x_end or 1)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if x_end else NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_count(x)))
    ax.set_xlabel("tokens", fontsize=9, color=FAINT)


def short_count(n: float) -> str:
    """A round number of an axis: 500k, 1M, 1.5M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.4g}{suffix}"
    return f"{n:.4g}"


def step_axis(ax: Axes, steps: Series) -> None:
    """Steps along the top edge, by the run's own pairs of tokens and steps."""
    x, first = np.unique(steps.finite.x, return_index=True)
    y = steps.finite.y[first]
    if len(x) < 2 or np.any(np.diff(y) <= 0):
        return
    x, y = thin(Series(x, y), N_DRAWN)
    top = ax.secondary_xaxis(
        "top", functions=(lambda v: _extended(v, x, y), lambda v: _extended(v, y, x))
    )
    top.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    top.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short_count(v)))
    top.tick_params(colors=FAINT, labelsize=8, length=2, pad=1)
    top.spines["top"].set_visible(False)
    top.set_xlabel("step", fontsize=8, color=FAINT, labelpad=2)


def _extended(v: Any, x: Any, y: Any) -> Any:
    """Linear interpolation that goes on straight beyond both ends."""
    v = np.asarray(v, dtype=float)
    below = y[0] + (v - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
    above = y[-1] + (v - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
    return np.where(v < x[0], below, np.where(v > x[-1], above, np.interp(v, x, y)))
