"""The part of report.md that only runs of answer refinement have."""

from mixlab.core import units
from mixlab.report.markup import table
from mixlab.report.material import Material


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
         f"{row['reasoning_steps']:.2f}", units.flops(row["flops_per_example"])]
        for name, row in rows
    ]  # fmt: skip
    head = ["test puzzles", "solved exactly", "valid", "segments", "FLOPs per puzzle"]
    parts = ["## Puzzles", table(head, cells, numbers=True)]
    for name in ("refinement", "film"):
        if (m.run.plots_path / f"{name}.png").exists():
            parts.append(f"![{name}](plots/{name}.png)")
    return "\n\n".join(parts)
