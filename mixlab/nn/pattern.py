"""Which block stands at which layer.

Three ways to write it, all with layer numbers from 0:

    pattern: [linear, linear, full]                  a motif, repeated (and cut at the last layer)
    pattern: {block: full, at: [5, 11], rest: linear}     at these layers
    pattern: {block: full, every: 6, rest: linear}        at layers 5, 11, 17, ...
"""

from typing import Any

from pydantic import NonNegativeInt, PositiveInt, model_validator

from mixlab.core.config import Config
from mixlab.core.errors import Rule


class Pattern(Config):
    """A rule that names one block per layer; either `motif`, or `block` with `at` or `every`."""

    motif: list[str] | None = None
    """Block names from layer 0 on, repeated as often as needed."""
    block: str | None = None
    """Block placed by `at` or `every`."""
    at: list[NonNegativeInt] | None = None
    """Layers that get `block`."""
    every: PositiveInt | None = None
    """The last layer of each group of this many gets `block`."""
    rest: str | None = None
    """Block of all other layers."""

    @model_validator(mode="before")
    @classmethod
    def _bare_list_is_a_motif(cls, tree: Any) -> Any:
        return {"motif": tree} if isinstance(tree, list) else tree

    @model_validator(mode="after")
    def _one_way(self) -> "Pattern":
        if self.motif is not None:
            if not self.motif:
                raise Rule("motif", [], "at least one block name")
            if any(x is not None for x in (self.block, self.at, self.every, self.rest)):
                raise Rule("motif", self.motif, "no other key beside a motif")
            return self
        if self.block is None or (self.at is None) == (self.every is None):
            raise Rule(
                "", self.model_dump(exclude_none=True),
                "a list of block names, or block with either at or every",
                "Such as [linear, full] or {block: full, every: 4, rest: linear}.",
            )  # fmt: skip
        if self.at is not None and len(set(self.at)) != len(self.at):
            raise Rule("at", self.at, "every layer at most once")
        return self

    def names(self) -> set[str]:
        """Every block name that the rule mentions."""
        return {name for name in [*(self.motif or []), self.block, self.rest] if name is not None}

    def expand(self, n_layers: int) -> list[str]:
        """The block name of every layer.

        Raises:
            Rule: a layer number out of range, or layers left without a block.
        """
        if self.motif is not None:
            return [self.motif[i % len(self.motif)] for i in range(n_layers)]
        if self.at is not None:
            beyond = [i for i in self.at if i >= n_layers]
            if beyond:
                raise Rule(
                    "at", self.at, f"layers 0 to {n_layers - 1}, as n_layers = {n_layers}",
                    f"Layer {beyond[0]} does not exist.",
                )  # fmt: skip
            chosen = set(self.at)
        else:
            assert self.every is not None
            chosen = set(range(self.every - 1, n_layers, self.every))
        names = [self.block if i in chosen else self.rest for i in range(n_layers)]
        if None in names:
            raise Rule("rest", None, f"the block of the layers that are not {self.block!r}")
        return [name for name in names if name is not None]
