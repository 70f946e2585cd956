"""`mixlab export`: a trained run as a folder that other software loads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    """The layouts that can be written."""

    hf = "hf"
    mixlab = "mixlab"


class DType(StrEnum):
    """The precisions of stored weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    out: Annotated[Path, typer.Option(help="The new folder; an empty one will do.")],
    layout: Annotated[
        Layout,
        typer.Option("--format", help="hf: for transformers and its kin; mixlab: a lean run."),
    ] = Layout.hf,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
    dtype: Annotated[
        DType, typer.Option(help="Precision of the stored weights; hf only.")
    ] = DType.float32,
) -> None:
    """Write a run's weights, tokenizer and model card as a folder that stock software loads.

    The folder is loaded with plain transformers before it appears, and only appears if it computes
    what the run computes; parity.json holds the figures. `mixlab show RUN` says beforehand where a
    model can go.

    \b
    Examples:
      mixlab export runs/quickstart --out quickstart-hf
      mixlab export runs/quickstart --out quickstart-hf --dtype bfloat16 --checkpoint last
      mixlab export runs/looped-lm --out looped-lm --format mixlab
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen

    with open_screen() as screen:
        from mixlab.jobs.export import export_run

        result = export_run(
            run, out, layout=layout.value, checkpoint=checkpoint, dtype=dtype.value, screen=screen
        )
    if result.target is None:
        print(f"Wrote step {result.step} to {out} in mixlab's own format.")
        print(f'\nNext:\n  mixlab generate {out} --prompt "The "')
        return
    found = result.parity or {}
    print(
        f"Wrote step {result.step} to {out} as {result.target.label} "
        f"({result.target.architecture}) in {dtype.value}."
    )
    cached = found["cached_against_uncached"]
    print(
        f"Loaded with plain transformers {found['transformers']}: largest difference of a logit "
        f"{found['largest_logit_difference']:.1e} (largest logit {found['largest_logit']:.1f}), "
        f"{found['greedy_equal']} of {found['greedy_prompts']} greedy continuations equal"
        + ("." if cached is None else f", cached against uncached {cached:.1e}.")
    )
    if "rounding" in found:
        moved = found["rounding"]["largest_logit_difference"]
        print(f"Rounding the weights to {dtype.value} moves logits by up to {moved:.1e}.")
    for note in result.notes:
        print(note)
    print(f"Read {out / 'README.md'} before you pass it on.")
