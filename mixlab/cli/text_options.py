"""Options that every command which writes text has."""

from typing import Annotated

import typer

Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from this much probability.")]
MinP = Annotated[
    float | None, typer.Option(help="Leave out tokens below this share of the likeliest one.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens that the text has already become less likely.")
]
Checkpoint = Annotated[str, typer.Option(help="best, last, or the number of a step that was kept.")]
Depth = Annotated[
    int | None, typer.Option(help="Of a looped model: steps that a token takes at most.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Of a looped model: when tokens leave before that.")
]
