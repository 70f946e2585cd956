"""What a longer text costs: Gated DeltaNet, a hybrid and attention from 1k to 64k tokens.

    python benchmarks/length.py --json length.json --picture docs/images/length.png
    python benchmarks/length.py --tiny                       # small stacks, on a CPU if need be
    python benchmarks/length.py --draw length.json --picture docs/images/length.png

Trained are the blocks of `hybrid-sparse-17` (12 x 768, 6 heads of 128, SwiGLU of 2048) with a
mixer of one kind in every layer, or attention at layers 5 and 11 only. Timed are forward and
backward passes without head, loss and optimizer, whose cost per token does not depend on length.

Time is that of 65,536 tokens in all, as many sequences as fit into them, so that every length has
the same work outside the mixers. Memory is that of one sequence of that length: the peak above
what the weights and their gradients take. The kinds take turns; medians and their spread.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from mixlab.jobs.process import tune_process

tune_process()

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mixlab.core.config import decode, to_tree
from mixlab.core.json_files import write_bytes_atomically
from mixlab.jobs.compiling import compile_blocks
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.device import describe
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model
from mixlab.report.panel import FAINT, INK, headline, name_panel, png, style
from mixlab.training.language_modelling import autocast

KINDS = {"linear": "Gated DeltaNet", "hybrid": "attention in 2 of 12", "full": "attention"}
COLOURS = {"linear": "#0072B2", "hybrid": "#009E73", "full": "#D55E00"}  # Okabe and Ito
VOCAB = 256  # of an embedding that only feeds the blocks


def model_of(kind: str, length: int, *, compiled: bool, tiny: bool) -> LanguageModel:
    """The stack, with weights from the recipe's seed."""
    config = load_config("hybrid-sparse-17")
    assert isinstance(config, RunConfig)
    tree = to_tree(config.model) | {"vocab_size": VOCAB, "max_seq_len": length}
    if kind != "hybrid":
        tree["blocks"] = {kind: tree["blocks"][kind]}
        tree["pattern"] = None
    if tiny:
        tree["d_model"] = 64
        for block in tree["blocks"].values():
            block["sequence_mixer"] |= {"n_heads": 2, "head_dim": 32}
            block["channel_mixer"] |= {"d_ff": 128}
    model = build_model(decode(LanguageModelConfig, tree), config.seed)
    if compiled:
        compile_blocks(model)
    return model


def passes(model: LanguageModel, tokens: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Forward and backward of the stack."""
    with autocast(tokens.device, dtype):
        h = model.trunk(tokens).h
    h.backward(torch.ones_like(h))


def timed(model: LanguageModel, tokens: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Seconds of one forward and backward."""
    is_cuda = tokens.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    passes(model, tokens, dtype)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(model: LanguageModel, length: int, dtype: torch.dtype | None) -> int | None:
    """Peak above weights and gradients with one sequence; None where nobody counts (on a CPU)."""
    device = model.embed_tokens.weight.device
    if device.type != "cuda":
        return None
    tokens = torch.randint(VOCAB, (1, length), device=device)
    passes(model, tokens, dtype)  # now every gradient is allocated
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    passes(model, tokens, dtype)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    lengths: Sequence[int], n_tokens: int, *, rounds: int, compiled: bool, tiny: bool
) -> list[dict[str, Any]]:
    """One row per kind and length; out of memory is said there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else None
    rows = []
    models = {
        kind: model_of(kind, max(lengths), compiled=compiled, tiny=tiny).to(device)
        for kind in KINDS
    }
    for length in lengths:
        tokens = torch.randint(VOCAB, (max(1, n_tokens // length), length), device=device)
        here = [{"kind": kind, "length": length, "tokens": tokens.numel()} for kind in KINDS]
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for i in range(rounds + 2):
            for row in here:
                if "error" not in row:
                    _one(row, times[row["kind"]], models[row["kind"]], tokens, dtype, i >= 2)
        for row in here:
            row["ms"] = [1000 * s for s in times[row["kind"]]]
            if "error" not in row:
                row["peak_bytes"] = peak_bytes(models[row["kind"]], length, dtype)
            print(_said(row), file=sys.stderr, flush=True)
        rows += here
    return rows


def _one(
    row: dict[str, Any],
    times: list[float],
    model: LanguageModel,
    tokens: torch.Tensor,
    dtype: torch.dtype | None,
    counts: bool,
) -> None:
    try:
        seconds = timed(model, tokens, dtype)
    except torch.OutOfMemoryError as error:
        row["error"] = str(error).split(". ")[0]
        torch.cuda.empty_cache()
        return
    if counts:
        times.append(seconds)


def _said(row: dict[str, Any]) -> str:
    name = f"  {row['length']:7,} {KINDS[row['kind']]:26}"
    if not row["ms"]:
        return f"{name} {row.get('error', 'not measured')}"
    peak = row.get("peak_bytes")
    memory = f", {peak / 2**30:.2f} GiB for one sequence" if peak else ""
    return f"{name} {us_per_token(row):8.2f} us per token{memory}"


def us_per_token(row: dict[str, Any]) -> float:
    """Microseconds, at the median."""
    return 1000 * statistics.median(row["ms"]) / row["tokens"]


def picture(found: dict[str, Any]) -> Figure:
    """Time per token and memory of a sequence, both against its length."""
    figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.02)
    has_memory = any(row.get("peak_bytes") for row in found["rows"])
    panels = figure.subplots(1, 2 if has_memory else 1, squeeze=False)[0]
    device = found["device"].get("device_name") or found["device"]["device"]
    headline(figure, "What length costs", f"{device}, {found['precision']}, {found['made']}")
    lengths = sorted({row["length"] for row in found["rows"]})
    name_panel(panels[0], "Forward and backward", "microseconds per token")
    _lines(panels[0], found["rows"], lengths, us_per_token)
    if has_memory:
        name_panel(panels[1], "Activations of one sequence", "GiB, both axes logarithmic")
        panels[1].set_yscale("log", base=2)
        _lines(panels[1], found["rows"], lengths, lambda row: row["peak_bytes"] / 2**30)
        panels[1].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panels[1].yaxis.set_minor_locator(NullLocator())
    return figure


def _lines(ax: Axes, rows: list[dict[str, Any]], lengths: list[int], value: Any) -> None:
    style(ax)
    ax.set_xscale("log", base=2)
    ends = []
    for kind, name in KINDS.items():
        points = [(r["length"], value(r)) for r in rows if r["kind"] == kind and r["ms"]]
        if points:
            ax.plot(*zip(*points, strict=True), color=COLOURS[kind], marker="o", markersize=4.5,
                    linewidth=2)  # fmt: skip
            ends.append((points[-1], name, COLOURS[kind]))
    if ax.get_yscale() == "linear":
        ax.set_ylim(0, 1.3 * max(r for (_, r), _, _ in ends))  # room for the names
    _end_names(ax, ends)
    ax.xaxis.set_major_locator(FixedLocator(lengths))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}")
    )
    ax.set_xlabel("tokens of a sequence", fontsize=9, color=FAINT)
    ax.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.18)


def _end_names(ax: Axes, ends: list[tuple[tuple[float, float], str, str]]) -> None:
    """Names in the upper left corner, in the order in which the lines end: no line is crossed."""
    for i, ((_, y), name, colour) in enumerate(sorted(ends, key=lambda end: -end[0][1])):
        ax.text(0.03, 0.95 - 0.075 * i, name, transform=ax.transAxes, color=colour, fontsize=10,
                weight="bold", va="top")  # fmt: skip
        ax.text(0.6, 0.95 - 0.075 * i, f"{y:.3g}", transform=ax.transAxes, color=colour,
                fontsize=10, va="top", ha="right")  # fmt: skip
    ax.text(0.6, 1.0, "longest", transform=ax.transAxes, color=INK, fontsize=8, va="top",
            ha="right")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.draw is not None:
        found = json.loads(args.draw.read_text())
    else:
        is_cuda = torch.cuda.is_available()
        if not (is_cuda or args.tiny):
            print(
                "length.py needs an NVIDIA GPU, and PyTorch finds none here. Try the same code in "
                "a small size on this machine with --tiny.",
                file=sys.stderr,
            )
            return 2
        lengths = args.lengths or ([128 * 2**i for i in range(4)] if args.tiny
                                   else [1024 * 2**i for i in range(7)])  # fmt: skip
        n_tokens = min(65536, 4 * max(lengths)) if args.tiny else 65536
        found = {
            "made": date.today().isoformat(),
            "device": describe(torch.device("cuda" if is_cuda else "cpu")),
            "torch": torch.__version__,
            "precision": "bf16" if is_cuda else "fp32",
            "compile": args.compile,
            "n_tokens": n_tokens,
            "rows": measure(lengths, n_tokens, rounds=args.rounds, compiled=args.compile,
                            tiny=args.tiny),
        }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.picture is not None:
        write_bytes_atomically(args.picture, png(picture(found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--tiny", action="store_true", help="small stacks, on a CPU if need be")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them there, as PNG")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing, draw these")
    return parser


if __name__ == "__main__":
    sys.exit(main())
