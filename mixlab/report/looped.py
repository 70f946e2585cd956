"""The picture and the section of a run with a looped model: loss by depth, loss by mean steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixlab.core.json_files import write_bytes_atomically
from mixlab.core.run_dir import RunDir
from mixlab.report.markup import table
from mixlab.report.material import Facts, Material, number
from mixlab.report.panel import FAINT, INK, headline, name_panel, png, style

_BY_DEPTH, _WITH_EXITS = "#08306B", "#D94801"
_MAX_ROWS = 16


def depth_path(run: RunDir) -> Path:
    return run.plots_path / "depth.png"


def write_depth_picture(run: RunDir) -> Path | None:
    """Write plots/depth.png; None for a run without figures by depth."""
    facts = (run.read_json("summary.json") or {}).get("depth")
    if not _rows(facts, "by_depth"):
        return None
    return write_bytes_atomically(depth_path(run), png(depth_picture(facts, title=run.name)))


def depth_picture(facts: Facts, *, title: str) -> Figure:
    """Validation loss against steps per token: all tokens alike, and with early exits."""
    figure = Figure(figsize=(8, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    headline(figure, title, f"trained for {facts.get('trained_steps')} steps")
    ax: Axes = figure.subplots()
    style(ax)
    name_panel(ax, "Loss by depth", "validation, nats per token")
    rows = _rows(facts, "by_depth")
    steps, losses = [row["steps"] for row in rows], [row["loss_nats"] for row in rows]
    ax.plot(steps, losses, color=_BY_DEPTH, marker="o", markersize=4, label="every token")
    exits = sorted(_rows(facts, "with_exits"), key=lambda row: row["mean_steps"])
    if exits:
        ax.plot(
            [row["mean_steps"] for row in exits], [row["loss_nats"] for row in exits],
            color=_WITH_EXITS, marker="s", markersize=4, linestyle="--",
            label=f"leaving early ({facts.get('halting')}), mean steps",
        )  # fmt: skip
    trained = number(facts.get("trained_steps"))
    if trained is not None:
        ax.axvline(trained, color=FAINT, linewidth=0.8, linestyle=":", label="trained depth")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("steps per token", fontsize=9, color=FAINT)
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def looped_section(m: Material) -> str:
    """The section in markdown; empty for a run without figures by depth."""
    facts = m.summary.get("depth")
    rows = _rows(facts, "by_depth")
    if not rows:
        return ""
    parts = ["## Depth"]
    picture = depth_path(m.run)
    if picture.is_file():
        parts.append(f"![Loss by depth]({picture.relative_to(m.run.path).as_posix()})")
    trained, n_loops = facts["trained_steps"], facts["loops_per_step"]
    last = rows[-1]
    by_steps = {row["steps"]: row["loss_nats"] for row in rows}
    parts.append(
        f"The core runs {n_loops} {'loop' if n_loops == 1 else 'loops'} per step; it was trained "
        f"with up to {facts['max_trained_steps']} steps and is evaluated at {trained}. Validation "
        f"loss on {facts['n_tokens']:,} tokens: {by_steps[1]:.3f} nats after one step, "
        f"{by_steps[trained]:.3f} after {trained}, {last['loss_nats']:.3f} after {last['steps']}."
    )
    stride = -(-len(rows) // _MAX_ROWS)
    shown = [row for row in rows if row["steps"] in (1, trained) or row["steps"] % stride == 0]
    parts.append(
        table(
            ["steps", "loss, nats per token", "accuracy"],
            [[str(r["steps"]), f"{r['loss_nats']:.4f}", f"{r['accuracy']:.2%}"] for r in shown],
            numbers=True,
        )
    )
    exits = _rows(facts, "with_exits")
    if exits:
        parts.append(
            f"With tokens that leave early (`{facts['halting']}`), all others unchanged; the "
            f"configured threshold is {facts['exit_threshold']:g}. Choose it on validation text."
        )
        body = [
            [f"{r['exit_threshold']:g}", f"{r['loss_nats']:.4f}",
             f"{r['mean_steps']:.2f} of {r['max_steps']}"]
            for r in exits
        ]  # fmt: skip
        parts.append(table(["threshold", "loss, nats per token", "mean steps"], body, numbers=True))
    return "\n\n".join(parts)


def _rows(facts: Any, name: str) -> Sequence[Mapping[str, Any]]:
    rows = facts.get(name) if isinstance(facts, Mapping) else None
    return rows if isinstance(rows, list) else []
