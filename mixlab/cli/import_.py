"""`mixlab import`: a stock checkpoint as a run."""

from pathlib import Path
from typing import Annotated

import typer


def import_(
    folder: Annotated[
        Path, typer.Argument(help="A model folder with config.json, safetensors, tokenizer.json.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Text and training of the run."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run under runs/; default: the folder's.")
    ] = None,
) -> None:
    """Make a run of a stock checkpoint that lies on disk: Llama, Qwen, OLMoE, Mixtral, DeepSeek-V3.

    Weights are read from safetensors alone and no code of the folder is run. An option of its
    config.json that mixlab does not have is refused by name. The run can be used like any other,
    and trained further on the text that the overrides name.

    \b
    Examples:
      mixlab import ~/models/SmolLM2-135M
      mixlab import ~/models/SmolLM2-135M data.corpus.kind=text data.corpus.path=book.txt
      mixlab generate runs/SmolLM2-135M --prompt "Once upon a time"
      mixlab extend runs/SmolLM2-135M --steps 500
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen

    with open_screen() as screen:
        from mixlab.core import units
        from mixlab.jobs.import_ import import_checkpoint

        result = import_checkpoint(
            folder, name=name, overrides=list(overrides or []), screen=screen
        )
    path = result.run.path
    print(
        f"Made {path} of a {result.target.label} checkpoint with "
        f"{units.count(result.n_params)} parameters."
    )
    for note in result.notes:
        print(note)
    print(f'\nNext:\n  mixlab generate {path} --prompt "The "\n  mixlab extend {path} --steps 200')
