"""`mixlab bench`: how fast a recipe trains on this machine, and where the time goes."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes to the recipe.")
    ] = None,
    updates: Annotated[int, typer.Option("--updates", help="Updates that are timed.")] = 12,
    mean_document: Annotated[
        int | None,
        typer.Option("--documents", metavar="TOKENS", min=1,
                     help="Pack documents of so many tokens on average; absent: one per row."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything there as JSON.")
    ] = None,
) -> None:  # fmt: skip
    """Time updates on random tokens: tokens/s, phases, share of the matrix rate, kernels.

    \b
    Examples:
      mixlab bench quickstart
      mixlab bench hybrid-sparse-17 train.compile=true
      torchrun --nproc-per-node 2 -m mixlab bench hybrid-sparse-17
      mixlab bench moe train.batch_size=16 --documents 400 --json moe.json
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen, print_table
    from mixlab.core.json_files import write_json
    from mixlab.jobs import bench as benches
    from mixlab.jobs.config import load_config
    from mixlab.jobs.ranks import joined_ranks

    config = load_config(recipe, list(overrides or []))
    with joined_ranks() as world, open_screen() as screen:
        found = benches.bench(
            config, screen, n_updates=updates, mean_document=mean_document, world=world
        )
        world.leave()
    facts, kinds = benches.rows(found)
    print_table(("measured", "value"), facts)
    print()
    print_table(("kind of work", "ms", "share", "calls", "mostly"), kinds)
    if out is not None and world.is_first:
        write_json(out, found.row())
