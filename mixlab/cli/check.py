"""`mixlab check`: prove that a model is what it claims to be."""

from typing import Annotated

import typer

FAILED = 1


def check(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe, a YAML file, or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes to try.")
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Prepare a recipe's text too, and check its splits.")
    ] = False,
) -> None:
    """Check causality, decoding, batches, packing, gradients, labels, losses, rounding and splits.

    Exit status 1 when a check fails. Takes seconds; a large model is checked as a small copy with
    the same kinds of layers in the same order.

    \b
    Examples:
      mixlab check quickstart
      mixlab check quickstart train.optimizer.lr=1e-5
      mixlab check runs/quickstart
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen, print_table

    with open_screen() as screen:
        from mixlab.jobs.check import check as run_all

        report = run_all(recipe, list(overrides or []), with_data=data, screen=screen)
    rows = [(r.name, r.verdict, r.finding.measured, r.finding.meaning) for r in report.results]
    print_table(("check", "verdict", "measured", "meaning"), rows)
    for note in [f"{report.name}: {report.size}.", *report.notes]:
        typer.echo(note, err=True)
    if report.failed:
        raise typer.Exit(FAILED)
