"""`mixlab list`: what there is to choose from."""

from enum import StrEnum
from typing import Annotated

import typer


class What(StrEnum):
    """The tables that can be listed."""

    recipes = "recipes"
    studies = "studies"
    claims = "claims"
    corpora = "corpora"
    tokenizers = "tokenizers"
    tasks = "tasks"
    mixers = "mixers"
    optimizers = "optimizers"
    schedules = "schedules"
    mirrors = "mirrors"


def list_(what: Annotated[What, typer.Argument(help="What to list.")]) -> None:
    """List recipes, studies, claims, corpora, tokenizers, mixers, optimizers and more.

    \b
    Examples:
      mixlab list recipes
      mixlab list studies
      mixlab list mixers
    """
    from mixlab.cli.screen import print_table

    if what is What.recipes:
        from mixlab.core.recipes import list_recipes

        print_table(("recipe", "what it is"), list_recipes())
        return
    if what is What.studies:
        from mixlab.studies.catalogue import list_studies

        print_table(("study", "arms", "seeds", "what it asks"), list_studies())
        return
    if what is What.claims:
        from mixlab.studies.catalogue import list_claims

        print_table(("claim", "study", "what it says"), list_claims())
        return
    from mixlab.jobs.catalogue import entries

    rows = entries(what.value)
    print_table(("config key", "kind", "what it is"), rows)
