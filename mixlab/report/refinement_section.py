"""The parts of report.md that only runs of answer refinement have."""

from collections.abc import Mapping
from typing import Any

from mixlab.core import units
from mixlab.report.markup import table
from mixlab.report.material import Material, number

Facts = Mapping[str, Any]

_SHARES = (
    ("solved exactly", "exact_accuracy"),
    ("blank cells right", "blank_accuracy"),
    ("all cells right, on average", "accuracy"),
    ("accepted by the rules", "valid_accuracy"),
    ("right once, wrong at the end", "regress_rate"),
)
_HALTING = (
    ("halting head: AUROC", "halt_auroc"),
    ("halting head: calibration error", "halt_ece"),
    ("halts while wrong", "premature_halt_rate"),
    ("right and does not halt", "late_halt_rate"),
)


def is_refinement(m: Material) -> bool:
    """Whether the run solves puzzles."""
    return m.config.get("kind") == "refine"


def refinement_verdict(m: Material) -> str:
    """One sentence on how much it solves."""
    test = m.eval_row("test")
    if number(test.get("exact_accuracy")) is not None:
        return f"It solves {units.percent(test['exact_accuracy'])} of the test puzzles."
    best = number(m.eval_row("best").get("exact_accuracy"))
    return "" if best is None else f"It solved {units.percent(best)} of the validation puzzles."


def refinement_results(m: Material) -> str:
    """Evaluations at the trained depth: what is solved, and how well the halting head knows."""
    named = [("last", m.eval_row("final")), ("best", m.eval_row("best"))]
    if named[0][1] == named[1][1]:
        named = [("last and best", named[0][1])]
    columns = [
        (f"{name} (step {row['step']:,})" if row.get("step") is not None else name, row)
        for name, row in [*named, ("test puzzles", m.eval_row("test"))]
        if row
    ]
    if not columns:
        return "## Results\n\nNo evaluation was recorded."
    rows = [["loss, nats per cell", *(_figure(row, "loss_nats", "{:.4f}") for _, row in columns)]]
    rows += [[label, *(_percent(row, key) for _, row in columns)] for label, key in _SHARES]
    rows += [
        [label, *(_figure(row, key, "{:.4f}") for _, row in columns)] for label, key in _HALTING
    ]
    final = columns[0][1]
    averaged = ", with averaged weights (EMA)" if final.get("weights") == "ema" else ""
    n = number(final.get("n_examples"))
    held_out = f"{n:,.0f} validation puzzles" if n else "validation puzzles"
    return "\n\n".join(
        [
            "## Results",
            f"Measured on {held_out} that were never trained on, also up to symmetry{averaged}.",
            table(
                ["", *(name for name, _ in columns)],
                [row for row in rows if any(row[1:])],
                numbers=True,
            ),
            "Solved exactly means that every cell is right; the rules may accept other answers "
            "too. Shares of the halting head are over all segments of all puzzles.",
        ]
    )


def refinement_section(m: Material) -> str:
    """How many test puzzles were solved, at what cost, with the pictures; empty for other runs."""
    found, test = m.summary.get("refinement"), m.summary.get("test")
    if not found or not test:
        return ""
    rows = [["all segments", test]]
    rows += [[name.replace("_", " "), found[name]] for name in ("early_exit", "rollouts")
             if found.get(name)]  # fmt: skip
    cells = [
        [name, units.percent(row["exact_accuracy"]), units.percent(row["valid_accuracy"]),
         f"{_steps(row):.2f}", units.flops(row["flops_per_example"])]
        for name, row in rows
    ]  # fmt: skip
    head = ["test puzzles", "solved exactly", "valid", "segments", "FLOPs per puzzle"]
    parts = ["## Puzzles", table(head, cells, numbers=True), *_early_exit(found)]
    for name in ("refinement", "film"):
        if (m.run.plots_path / f"{name}.png").exists():
            parts.append(f"![{name}](plots/{name}.png)")
    return "\n\n".join(parts)


def _early_exit(found: Facts) -> list[str]:
    eager = found.get("early_exit")
    if not eager:
        return []
    text = (
        f"Early exit stops a puzzle when its score is above {found['exit_threshold']:g}, which was "
        f"chosen on validation puzzles. It costs {100 * eager['accuracy_drop_early_exit']:.2f} "
        f"points and {1 / eager['speedup_early_exit']:.0%} of the segments."
    )
    n_tries = found.get("rollouts", {}).get("num_rollouts")
    if n_tries:
        text += (
            f" Rollouts are {n_tries} tries from noisy first states, of which the halting head "
            "picks one; their segments are counted together."
        )
    return [text]


def _steps(row: Facts) -> float:
    """Segments per puzzle, of a row at the trained depth or with early exit."""
    return row["eval/reasoning_steps"] if "eval/reasoning_steps" in row else row["reasoning_steps"]


def _figure(row: Facts, key: str, form: str) -> str:
    value = number(row.get(key))
    return "" if value is None else form.format(value)


def _percent(row: Facts, key: str) -> str:
    value = number(row.get(key))
    return "" if value is None else units.percent(value)
