"""The picture of `curves.py`: loss against seconds, and against tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mixlab.report.panel import FAINT, headline, name_panel, short_count, style

COLOURS = {"ours": "#0072B2", "published": "#D55E00"}  # Okabe and Ito


def loss_at(run: dict[str, Any], seconds: float) -> float:
    """The validation loss at a moment, between two evaluations on a line."""
    at = eval_seconds(run)
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
    plain = plain_steps(runs)
    title = "hybrid-sparse-17 beside the published recipe"
    headline(figure, title, f"{plain} updates, {device}, {runs[0]['made']}")
    name_panel(left, "Validation loss over time", "nats per token")
    name_panel(right, "The same over tokens", "faint: training loss")
    for run in runs:
        n_steps = len(run["seconds"])  # fewer than planned if it was cut short
        dashes = "-" if run["n_steps"] == plain else (0, (3, 1.5))
        colour, nats = COLOURS[run["side"]], [row["loss_nats"] for row in run["evals"]]
        per_step = run["tokens_per_step"]
        xs = {
            left: (run["seconds"], eval_seconds(run)),
            right: (per_step * np.arange(1, n_steps + 1),
                    [per_step * row["step"] for row in run["evals"]]),
        }  # fmt: skip
        for ax, (x_train, x_eval) in xs.items():
            ax.plot(x_train, run["train_loss"], color=colour, alpha=0.22, linewidth=1)
            ax.plot(x_eval, nats, color=colour, linewidth=2, linestyle=dashes, marker="o",
                    markersize=4)  # fmt: skip
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
    return low - 0.12 * (high - low), high + 0.36 * (high - low)  # room for the names


def plain_steps(runs: Sequence[dict[str, Any]]) -> int:
    """Updates that both sides were given alike; other lengths are drawn dashed."""
    given = [{run["n_steps"] for run in runs if run["side"] == side} for side in COLOURS]
    return max(set.intersection(*given) or set.union(*given))


def _names(ax: Axes, runs: Sequence[dict[str, Any]]) -> None:
    plain = plain_steps(runs)
    for i, run in enumerate(runs):
        speed = short_count(round(1000 * run["tokens_per_step"] / run["median_ms"], -3))
        text = f"{run['label']}: {run['n_params'] / 1e6:.1f}M, {speed} tok/s"
        if run["n_steps"] != plain:
            text = f"dashed: its schedule over {run['n_steps']} updates"
        ax.text(0.98, 0.97 - 0.075 * i, text, transform=ax.transAxes, color=COLOURS[run["side"]],
                fontsize=10, weight="bold", ha="right", va="top")  # fmt: skip
    ends = [(run["evals"][-1]["loss_nats"], run) for run in runs]
    for nats, run in ends:
        x = run["evals"][-1]["step"] * run["tokens_per_step"]
        is_upper = all(nats >= other or x != at for other, at in _ends(runs))
        ax.annotate(
            f"{nats:.2f}", (x, nats), xytext=(6, 6 if is_upper else -13),
            textcoords="offset points", fontsize=10, color=COLOURS[run["side"]], weight="bold",
            va="center", annotation_clip=False,
        )  # fmt: skip


def _ends(runs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(validation loss, tokens) at the end of each run."""
    return [
        (run["evals"][-1]["loss_nats"], run["evals"][-1]["step"] * run["tokens_per_step"])
        for run in runs
    ]


def _unigram(left: Axes, right: Axes, runs: Sequence[dict[str, Any]]) -> None:
    nats = next((run["context"]["unigram_entropy_nats"] for run in runs if run["context"]), None)
    if nats is None:
        return
    for ax in (left, right):
        ax.axhline(nats, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    left.text(0.99, nats, "unigram entropy ", transform=left.get_yaxis_transform(), ha="right",
              va="bottom", fontsize=8.5, color=FAINT)  # fmt: skip


def _equal_time(ax: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Where our runs end: what the others have reached by then, or at their own end before it."""
    ours = [run for run in runs if run["side"] == "ours"]
    others = [run for run in runs if run["side"] != "ours"]
    if not others:
        return
    for i, run in enumerate(sorted(ours, key=lambda run: run["seconds"][-1])):
        at, nats = run["seconds"][-1], run["evals"][-1]["loss_nats"]
        # A run that ended long before is no match for this one.
        rivals = [other for other in others if other["seconds"][-1] > 0.9 * at]
        reached = [loss_at(other, at) for other in rivals]
        if not reached:
            continue
        ax.plot([at, at], [nats, max(reached)], color=FAINT, linewidth=1.2, zorder=1)
        found = " or ".join(f"{loss:.2f}" for loss in sorted(reached))
        ax.text(0.98, 0.62 - 0.075 * i, f"after {at:.0f} s: {nats:.2f} against {found}",
                transform=ax.transAxes, fontsize=10, ha="right", va="top")  # fmt: skip
