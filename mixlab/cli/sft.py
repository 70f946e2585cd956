"""`mixlab sft`: tune a run on examples of question and answer, as a child run."""

from pathlib import Path
from typing import Annotated

import typer


def sft(
    run: Annotated[Path, typer.Argument(help="The run whose weights to start from.")],
    data: Annotated[
        str,
        typer.Argument(
            help="JSON lines with messages or with prompt and completion; or `instructions`, a "
            "set of questions that is made on the spot."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Changes, such as train.optimizer.lr=1e-4."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The child's folder; default: RUN-sft, RUN-sft-2, ..."),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, help="Passes over the examples; default: 3."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
) -> None:
    """Tune a run on examples of question and answer, so that it answers instead of going on.

    It learns from the answers alone. The new run folder names its parent, and can be resumed,
    extended, checked and talked to like any other.

    \b
    Examples:
      mixlab sft runs/quickstart instructions
      mixlab sft runs/quickstart chats.jsonl --epochs 2
      mixlab sft runs/quickstart faq.jsonl data.corpus.prompt_field=question data.corpus.completion_field=answer
      mixlab train --resume runs/quickstart-sft
      mixlab chat runs/quickstart-sft
    """  # noqa: E501 (a command that can be pasted)
    from mixlab.cli.screen import open_screen
    from mixlab.cli.train import _finish
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.jobs.ranks import joined_ranks

    with joined_ranks() as world, open_screen() as screen:
        from mixlab.jobs.sft import tune_run

        result = tune_run(
            run,
            data,
            overrides or [],
            run_dir=run_dir,
            epochs=epochs,
            checkpoint=checkpoint,
            screen=screen,
            world=world,
        )
    _finish(result)
