"""`mixlab train`: train one model into a run folder, or go on with that run."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A packaged recipe (see `mixlab list recipes`) or a YAML file."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Changes, such as train.length='1M tokens'."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run folder to create; default: runs/NAME, runs/NAME-2, ..."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="20 steps at a fraction of the size, to see that it runs."),
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")
    ] = None,
    at_step: Annotated[
        int | None, typer.Option(help="With --resume: go on from this checkpoint.")
    ] = None,
) -> None:
    """Train a recipe, or go on with a run.

    \b
    Examples:
      mixlab train quickstart
      mixlab train quickstart train.length="2M tokens" model.n_layers=6
      mixlab train quickstart data.corpus.kind=text data.corpus.path=book.txt
      mixlab train my-recipe.yaml --run-dir runs/first
      mixlab train hybrid-sparse-17 --smoke
      mixlab train --resume runs/quickstart
    """
    from mixlab.cli.screen import open_screen
    from mixlab.core.errors import LabError
    from mixlab.jobs.process import tune_process

    # With --resume, the first free word may be an override of what the run already has.
    words = list(overrides or [])
    if recipe is not None and "=" in recipe and resume is not None:
        words, recipe = [recipe, *words], None
    if recipe is None and resume is None:
        raise LabError(
            "no recipe was given: expected a recipe such as quickstart, a YAML file, or "
            "--resume RUN. `mixlab list recipes` shows what there is."
        )
    if at_step is not None and resume is None:
        raise LabError(f"--at-step {at_step}: expected together with --resume RUN.")
    if smoke and resume is not None:
        raise LabError("--smoke: expected without --resume, which keeps the run's own size.")
    if run_dir is not None and resume is not None:
        raise LabError(
            f"--run-dir {run_dir}: expected without --resume, which stays in the run's folder."
        )
    tune_process()
    from mixlab.jobs.ranks import joined_ranks

    with joined_ranks() as world, open_screen() as screen:
        from mixlab.jobs.train import resume_run, start_run

        if resume is not None:
            result = resume_run(
                resume, recipe=recipe, overrides=words, at_step=at_step, screen=screen, world=world
            )
        else:
            assert recipe is not None
            if smoke:
                from mixlab.jobs.smoke import load_shrunk

                result = start_run(
                    load_shrunk(recipe, words), run_dir=run_dir, screen=screen, world=world
                )
            else:
                result = start_run(recipe, words, run_dir=run_dir, screen=screen, world=world)
    _finish(result)


def _finish(result) -> None:
    """Say how it ended and what to do next; an interrupted run ends with its signal's status."""
    from mixlab.cli.closing import closing_text

    if result.is_told:
        print(closing_text(result))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
