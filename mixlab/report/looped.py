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
    """Validation loss against steps per token; of a run whose tokens leave, when they do, too."""
    quality = facts.get("exit_quality") or {}
    has_exits = bool(_rows(facts, "with_exits") and _rows(quality, "calibration"))
    size = (13.5, 4.6) if has_exits else (8, 4.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    headline(figure, title, f"trained for {facts.get('trained_steps')} steps")
    axes = figure.subplots(1, 3 if has_exits else 1, squeeze=False)[0]
    for ax in axes:
        style(ax)
    _loss_panel(axes[0], facts)
    if has_exits:
        _histogram_panel(axes[1], facts)
        _calibration_panel(axes[2], facts, quality)
    return figure


def _loss_panel(ax: Axes, facts: Facts) -> None:
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


def _histogram_panel(ax: Axes, facts: Facts) -> None:
    counts = (facts.get("test") or {}).get("halt_histogram") or []
    total = max(1, sum(counts))
    name_panel(ax, "When tokens leave", f"test, at {facts.get('exit_threshold'):g}; % of tokens")
    ax.bar(range(1, len(counts) + 1), [100 * n / total for n in counts], color=_WITH_EXITS)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("steps taken", fontsize=9, color=FAINT)


def _calibration_panel(ax: Axes, facts: Facts, quality: Facts) -> None:
    """Of a gate against its own probability; a rule without one is shown by the score's rank."""
    is_gate = quality.get("ece") is not None
    name_panel(ax, "Does the rule know?", "share unchanged by more steps")
    bins = _rows(quality, "calibration")
    x = [row["probability"] for row in bins]
    ax.plot(x, [row["right"] for row in bins], color=_WITH_EXITS, marker="s", markersize=4)
    if is_gate:
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    label = "probability to have stopped" if is_gate else "rank of the score (1: moved least)"
    ax.set_xlabel(label, fontsize=9, color=FAINT)


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
    by_steps = {row["steps"]: row["loss_nats"] for row in rows}
    text = (
        f"The core runs {n_loops} {'loop' if n_loops == 1 else 'loops'} per step; it was trained "
        f"with up to {facts['max_trained_steps']} steps and is evaluated at {trained}. Validation "
        f"loss on {facts['n_tokens']:,} tokens: {by_steps[1]:.3f} nats after one step, "
        f"{by_steps[trained]:.3f} after {trained}"
    )
    if 2 * trained in by_steps:
        text += f", {by_steps[2 * trained]:.3f} at twice that"
    parts.append(text + ".")
    use = facts.get("input_use")
    if isinstance(use, Mapping):
        parts.append(
            f"On the same tokens in random order the loss is {use['random_nats']:.3f} instead of "
            f"{use['true_nats']:.3f}: the difference is what the model takes from its input."
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
        parts.append(_exits_sentence(facts))
        body = [
            [f"{r['exit_threshold']:g}", f"{r['loss_nats']:.4f}",
             f"{r['mean_steps']:.2f} of {r['max_steps']}"]
            for r in exits
        ]  # fmt: skip
        parts.append(table(["threshold", "loss, nats per token", "mean steps"], body, numbers=True))
    return "\n\n".join(parts)


def _exits_sentence(facts: Facts) -> str:
    text = f"With tokens that leave early (`{facts['halting']}`), all others unchanged. "
    if facts.get("is_chosen"):
        text += (
            f"Chosen here: the threshold {facts['exit_threshold']:g}, with the fewest steps at "
            f"a rise of at most {facts['exit_max_rise']:g} nats. "
        )
    else:
        text += f"The configured threshold is {facts['exit_threshold']:g}. "
    test = facts.get("test")
    if isinstance(test, Mapping):
        text += (
            f"On test text it gives {test['loss_nats']:.4f} nats after {test['mean_steps']:.2f} "
            f"of {test['max_steps']} steps, against {test['full_loss_nats']:.4f} after all. "
        )
    quality = facts.get("exit_quality")
    if isinstance(quality, Mapping) and quality.get("auroc") is not None:
        text += (
            f"Of all tokens at all earlier exits, {quality['done_frac']:.0%} already predict what "
            f"they predict in the end; the rule ranks those above the others with an AUROC of "
            f"{quality['auroc']:.3f} (0.5 is chance)"
        )
        ece = quality.get("ece")
        text += "." if ece is None else f", and its probability is off by {ece:.3f} (ECE)."
    return text.rstrip()


def _rows(facts: Any, name: str) -> Sequence[Mapping[str, Any]]:
    rows = facts.get(name) if isinstance(facts, Mapping) else None
    return rows if isinstance(rows, list) else []
