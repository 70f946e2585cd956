"""Pictures of a refine run: accuracy by segment, halting, calibration, and one puzzle as a film."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mixlab.core import units
from mixlab.core.json_files import write_bytes_atomically
from mixlab.core.run_dir import RunDir
from mixlab.report.panel import FAINT, INK, headline, name_panel, png, say_empty, style

_LINE, _BARS, _WRONG, _RIGHT = "#0072B2", "#D55E00", "#D55E00", "#009E73"
_MAX_FRAMES = 6
_MAX_CELLS = 144
"""Larger grids are drawn without characters that nobody could read."""


def write_refinement_pictures(run: RunDir) -> list[Path]:
    """Write plots/refinement.png and plots/film.png; nothing for runs that have not got so far."""
    found = run.read_json("refinement.json")
    if not found:
        return []
    pictures = {"refinement": refinement_figure(found, run.name), "film": film(found["film"])}
    return [
        write_bytes_atomically(run.plots_path / f"{name}.png", png(figure))
        for name, figure in pictures.items()
    ]


def refinement_figure(found: Mapping[str, Any], title: str) -> Figure:
    """Three panels beside each other."""
    figure = Figure(figsize=(12, 4.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    headline(figure, title, "test puzzles")
    panels = figure.subplots(1, 3)
    for ax in panels:
        style(ax)
    _by_step(panels[0], found)
    _histogram(panels[1], found)
    _calibration(panels[2], found)
    return figure


def _by_step(ax: Axes, found: Mapping[str, Any]) -> None:
    name_panel(ax, "Solved by segment", "share of puzzles")
    shares, depth = found["accuracy_by_step"], found["trained_steps"]
    steps = range(1, len(shares) + 1)
    ax.plot(steps, shares, color=_LINE, linewidth=1.8, marker="o", markersize=4, clip_on=False)
    ax.axvline(depth, color=FAINT, linewidth=1, linestyle=(0, (5, 3)))
    ax.annotate(
        "trained depth", (depth, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", fontsize=8.5, color=FAINT,
    )  # fmt: skip
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("segment", fontsize=9, color=FAINT)


def _histogram(ax: Axes, found: Mapping[str, Any]) -> None:
    eager = found.get("early_exit")
    name_panel(ax, "Early exit", "puzzles by segments run")
    if eager is None:
        say_empty(ax, "no early exit")
        return
    counts = eager["halt_histogram"]
    ax.bar(range(1, len(counts) + 1), counts, color=_BARS, width=0.7)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(
        f"segments; {units.percent(eager['exact_accuracy'])} solved in "
        f"{eager['reasoning_steps']:.2f} on average", fontsize=9, color=FAINT,
    )  # fmt: skip


def _calibration(ax: Axes, found: Mapping[str, Any]) -> None:
    name_panel(ax, "Calibration", "size: how many")
    bins = found.get("calibration")
    if not bins:
        say_empty(ax, "no halting head")
        return
    total = sum(b["count"] for b in bins)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (5, 3)))
    ax.scatter(
        [b["probability"] for b in bins], [b["right"] for b in bins],
        s=[20 + 400 * b["count"] / total for b in bins], color=_LINE, alpha=0.8, clip_on=False,
    )  # fmt: skip
    ax.set_xlim(0, 1.08)
    ax.set_ylim(0, 1.08)
    ax.set_xlabel("predicted chance that the answer is right", fontsize=9, color=FAINT)
    ax.set_ylabel("share that is right", fontsize=9, color=FAINT)


def film(one: Mapping[str, Any]) -> Figure:
    """The question, then the answer after each segment, wrong cells marked."""
    answers = one["answers"]
    shown = list(range(len(answers)))
    if len(shown) > _MAX_FRAMES:  # the first ones and the last: little happens in between
        shown = [*shown[: _MAX_FRAMES - 1], shown[-1]]
    frames = [("question", one["question"]), *((f"segment {i + 1}", answers[i]) for i in shown)]
    figure = Figure(figsize=(2.3 * len(frames), 2.9), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(frames))
    for place, (ax, (name, grid)) in enumerate(zip(axes, frames, strict=True)):
        _frame(ax, name, grid, one, is_question=place == 0)
    figure.suptitle(f"{one['task']}, test puzzle {one['index']}", fontsize=11, color=INK, x=0.01,
                    ha="left")  # fmt: skip
    return figure


def _frame(
    ax: Axes, name: str, grid: list[str], one: Mapping[str, Any], *, is_question: bool
) -> None:
    rows, cols = len(grid), len(grid[0])
    ax.set_xlim(0, cols)
    ax.set_ylim(rows, 0)
    ax.set_aspect("equal")
    ax.set_xticks(range(cols + 1), labels=[])
    ax.set_yticks(range(rows + 1), labels=[])
    ax.tick_params(length=0)
    ax.grid(color="#CCCCCC", linewidth=0.8)
    ax.set_axisbelow(True)
    n_wrong = 0
    for r, row in enumerate(grid):
        for c, char in enumerate(row):
            given, right = one["given"][r][c] == "1", char == one["label"][r][c]
            if not is_question and not right:
                n_wrong += 1
                ax.axvspan(c, c + 1, 1 - (r + 1) / rows, 1 - r / rows, color=_WRONG, alpha=0.25)
            elif not is_question and not given and rows * cols > _MAX_CELLS and char != ".":
                ax.axvspan(c, c + 1, 1 - (r + 1) / rows, 1 - r / rows, color=_RIGHT, alpha=0.08)
            color = INK if given else (_RIGHT if right else _WRONG)
            size = 13 if rows <= 6 else (9 if rows <= 12 else 4)
            if not is_question or given:
                ax.text(c + 0.5, r + 0.52, char, ha="center", va="center", fontsize=size,
                        color=INK if is_question else color, parse_math=False)  # fmt: skip
    title = name if is_question else f"{name}: {n_wrong} wrong" if n_wrong else f"{name}: solved"
    ax.set_title(title, fontsize=9.5, color=INK)
