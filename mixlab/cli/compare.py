"""`mixlab compare`: runs and recipes beside each other, with seeds, intervals and controls."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B... [KEY=VALUE...]",
            help="Run folders, recipes or YAML files; the first is the baseline. Then changes to "
            "all recipes, such as train.length='1M tokens'.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder; default: comparisons/A-vs-B."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Seeds of every recipe; default: 3, or those of the runs."
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Train the controls of every recursive run or recipe too."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once; default: one per GPU, or per core without one."),
    ] = None,
) -> None:
    """Compare runs and recipes: tables, a picture, and a winner only where one is shown.

    Recipes are trained first, on the tokens of the first argument, with the same batches for each
    seed. The same command again goes on where it stopped, and so does -o alone. Runs that differ in
    the seed alone are one arm.

    \b
    Examples:
      mixlab compare moe moe-recursive data=stdlib --seeds 3 -o comparisons/recursion
      mixlab compare --controls -o comparisons/recursion
      mixlab compare quickstart mine.yaml train.length="1M tokens"
      mixlab compare runs/a runs/a-2 runs/b runs/b-2 -o comparisons/ab
      mixlab compare --controls runs/looped-lm
    """
    import signal
    import sys

    from mixlab.cli.screen import open_screen
    from mixlab.core.provenance import command_line
    from mixlab.jobs.process import tune_process
    from mixlab.stats import require_stats

    require_stats("mixlab compare")
    tune_process()
    words = list(things or [])
    with open_screen() as screen:
        from mixlab.studies.comparison import SUMMARY, prepare_comparison, run_comparison
        from mixlab.studies.driver import InterruptedStudyError

        prepared = prepare_comparison(
            [word for word in words if not _is_override(word)],
            overrides=[word for word in words if _is_override(word)],
            seeds=seeds, output=output, controls=controls, workers=workers, screen=screen,
            command=command_line(sys.argv),
        )  # fmt: skip
    from mixlab.cli.study_screen import open_study_screen

    try:
        with open_study_screen() as study_screen:
            done = run_comparison(prepared, study_screen)
    except InterruptedStudyError as stopped:
        print(f"Stopped; everything is saved in {prepared.folder}.\nGo on with the same command.")
        raise typer.Exit(128 + (stopped.signal or signal.SIGINT)) from None
    print(done.text)
    print(f"\nPicture: {done.plots}\nFigures: {done.folder / SUMMARY}")


def _is_override(word: str) -> bool:
    """`key=value`, unless a run or file is called that."""
    return "=" in word and not Path(word).exists()
