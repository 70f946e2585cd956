"""`mixlab extend`: train a finished run further, as a child run."""

from pathlib import Path
from typing import Annotated

import typer


def extend(
    run: Annotated[Path, typer.Argument(help="The run to go on from; it stays as it is.")],
    steps: Annotated[int, typer.Option(help="Updates in total, the parent's included.")],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The child's folder; default: RUN-to-STEPS."),
    ] = None,
) -> None:
    """Train a run to STEPS updates in total, in a new run folder that names its parent.

    The learning rate is stated and does not jump: from a checkpoint before the parent's decay the
    schedule simply goes on; otherwise it is led from the parent's last rate to the new schedule.

    \b
    Examples:
      mixlab extend runs/quickstart --steps 800
      mixlab extend runs/quickstart --steps 800 --run-dir runs/longer
    """
    from mixlab.cli.screen import open_screen
    from mixlab.cli.train import _finish
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.jobs.ranks import joined_ranks

    with joined_ranks() as world, open_screen() as screen:
        from mixlab.jobs.extend import extend_run

        result = extend_run(run, n_steps=steps, run_dir=run_dir, screen=screen, world=world)
    _finish(result)
