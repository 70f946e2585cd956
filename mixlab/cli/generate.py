"""`mixlab generate`: let a trained model continue a text."""

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 120,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")] = 40,
    top_p: Annotated[float | None, typer.Option(help="Draw from this much probability.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
) -> None:
    """Continue a text with a trained model, token by token.

    \b
    Examples:
      mixlab generate runs/quickstart --prompt "def "
      mixlab generate runs/quickstart --prompt "import " --temperature 0 --max-new-tokens 40
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.jobs.trained import open_trained, sampling_of

    sampling = sampling_of(temperature=temperature, top_k=top_k, top_p=top_p)
    model = open_trained(run, checkpoint)
    pieces = model.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    first = next(pieces, "")  # an error comes before anything is printed
    for piece in chain((prompt, first), pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
