"""`mixlab show`: what a recipe is made of and what it costs, before anything is trained."""

from typing import Annotated

import typer


def show(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe, a YAML file, or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes to try.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The reduced form that `train --smoke` runs.")
    ] = False,
    config: Annotated[bool, typer.Option("--config", help="Print the config as YAML.")] = False,
) -> None:
    """Explain a recipe: blocks, parameters, FLOPs per token, state, estimated memory.

    \b
    Examples:
      mixlab show quickstart
      mixlab show quickstart model.d_model=512
      mixlab show quickstart --config > mine.yaml
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import print_show
    from mixlab.jobs.show import describe, describe_recipe

    if smoke:
        from mixlab.jobs.smoke import load_shrunk

        description = describe(load_shrunk(recipe, list(overrides or [])))
    else:
        description = describe_recipe(recipe, list(overrides or []))
    if config:
        print(description.yaml, end="")
    else:
        print_show(description)
