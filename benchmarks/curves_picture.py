"""The picture of `curves.py`: loss against seconds, and against tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mixlab.report.panel import FAINT, headline, name_panel, png, short_count, style

__all__ = ["curves_picture", "png"]
COLOURS = {"ours": "#0072B2", "published": "#D55E00"}  # Okabe and Ito


def loss_at(run: dict[str, Any], seconds: float) -> float | None:
    """The validation loss at a moment, between two evaluations on a line; None beyond the run."""
    at = eval_seconds(run)
    if seconds > at[-1]:
        return None
    return float(np.interp(seconds, at, [row["loss_nats"] for row in run["evals"]]))


def eval_seconds(run: dict[str, Any]) -> list[float]:
    """Seconds of training behind each evaluation."""
    return [0.0 if row["step"] == 0 else run["seconds"][row["step"] - 1] for row in run["evals"]]


def curves_picture(runs: Sequence[dict[str, Any]]) -> Figure:
    """Both panels share the losses; only what they are spent on differs."""
    figure = Figure(figsize=(11, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.02)
    left, right = figure.subplots(1, 2, sharey=True)
    device = runs[0]["device"].get("device_name") or runs[0]["device"]["device"]
    n_steps = len(runs[0]["seconds"])
    headline(figure, "Beside the published recipe", f"{n_steps} updates, {device}")
    name_panel(left, "Validation loss over time", "nats per token")
    name_panel(right, "The same over tokens", "faint: training loss")
    for run in runs:
        colour, nats = COLOURS[run["side"]], [row["loss_nats"] for row in run["evals"]]
        per_step = run["tokens_per_step"]
        xs = {
            left: (run["seconds"], eval_seconds(run)),
            right: (per_step * np.arange(1, n_steps + 1),
                    [per_step * row["step"] for row in run["evals"]]),
        }  # fmt: skip
        for ax, (x_train, x_eval) in xs.items():
            ax.plot(x_train, run["train_loss"], color=colour, alpha=0.22, linewidth=1)
            ax.plot(x_eval, nats, color=colour, linewidth=2, marker="o", markersize=4)
    _names(right, runs)
    _unigram(left, right, runs)
    for ax in (left, right):
        style(ax)
        ax.set_xlim(left=0)
    left.set_xlabel("seconds of training, compiling and evaluations left out", fontsize=9,
                    color=FAINT)  # fmt: skip
    right.set_xlabel("tokens", fontsize=9, color=FAINT)
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_count(x)))
    left.set_ylim(*_limits(runs))
    _equal_time(left, runs)
    return figure


def _limits(runs: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """From below the best to a little above the losses after the first evaluations."""
    low = min(min(row["loss_nats"] for row in run["evals"]) for run in runs)
    early = max(run["evals"][min(1, len(run["evals"]) - 1)]["loss_nats"] for run in runs)
    unigram = max((run["context"].get("unigram_entropy_nats", 0.0) for run in runs), default=0.0)
    high = max(early, unigram)
    return low - 0.12 * (high - low), high + 0.12 * (high - low)


def _names(ax: Axes, runs: Sequence[dict[str, Any]]) -> None:
    for i, run in enumerate(runs):
        speed = 1000 * run["tokens_per_step"] / run["median_ms"]
        text = (
            f"{run['label']}: {run['n_params'] / 1e6:.1f}M, {short_count(round(speed, -3))} tok/s"
        )
        ax.text(0.98, 0.97 - 0.075 * i, text, transform=ax.transAxes, color=COLOURS[run["side"]],
                fontsize=10, weight="bold", ha="right", va="top")  # fmt: skip
        end = run["evals"][-1]
        ax.annotate(
            f"{end['loss_nats']:.2f}", (end["step"] * run["tokens_per_step"], end["loss_nats"]),
            xytext=(6, 0), textcoords="offset points", color=COLOURS[run["side"]], fontsize=10,
            weight="bold", va="center", annotation_clip=False,
        )  # fmt: skip


def _unigram(left: Axes, right: Axes, runs: Sequence[dict[str, Any]]) -> None:
    nats = next((run["context"]["unigram_entropy_nats"] for run in runs if run["context"]), None)
    if nats is None:
        return
    for ax in (left, right):
        ax.axhline(nats, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    left.text(0.99, nats, "unigram entropy ", transform=left.get_yaxis_transform(), ha="right",
              va="bottom", fontsize=8.5, color=FAINT)  # fmt: skip


def _equal_time(ax: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Where the quicker run ends: what the other one has reached by then."""
    if len(runs) < 2:
        return
    first, other = sorted(runs, key=lambda run: run["seconds"][-1])[:2]
    at, nats = first["seconds"][-1], first["evals"][-1]["loss_nats"]
    there = loss_at(other, at)
    if there is None:
        return
    ax.plot([at, at], [nats, there], color=FAINT, linewidth=1.2, zorder=1)
    ax.annotate(
        f"after {at:.0f} s\n{nats:.2f} against {there:.2f}", (at, (nats + there) / 2),
        xytext=(8, 0), textcoords="offset points", fontsize=10, va="center",
    )  # fmt: skip
