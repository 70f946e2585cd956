"""What a model is trained on in one step."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mixlab.data.shards import IGNORE

__all__ = ["IGNORE", "Batch"]


class Batch(NamedTuple):
    """Sequences with their targets.

    `segments` numbers the documents inside each sequence from 0; EOS belongs to the document that
    it ends. In plain text the target at EOS is the first token of the next document; among
    examples of question and answer nothing is predicted across them.
    """

    tokens: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, IGNORE where nothing is predicted
    segments: torch.Tensor  # (B, T) int32
    prefix: torch.Tensor | None = None  # (B, T) bool: tokens that see each other both ways

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; from the CPU to an accelerator without waiting for the copy."""
        waits = not (torch.device(device).type == "cuda" and self.tokens.device.type == "cpu")

        def move(part: torch.Tensor | None) -> torch.Tensor | None:
            if part is None:
                return None
            return part.to(device) if waits else part.pin_memory().to(device, non_blocking=True)

        return Batch(*map(move, self))  # type: ignore[arg-type]

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, from where a GPU copies without anybody waiting."""
        return Batch(*(None if part is None else part.pin_memory() for part in self))  # type: ignore

    def padded(self, n_rows: int) -> "Batch":
        """The batch with `n_rows` sequences, the further ones without any target."""
        n_more = n_rows - len(self.tokens)
        if n_more <= 0:
            return self
        first = self.rows(slice(0, 1))
        more = Batch(*(None if part is None else part.repeat(n_more, 1) for part in first))  # type: ignore
        return Batch.joined([self, more._replace(targets=torch.full_like(more.targets, IGNORE))])

    def rows(self, where: slice) -> "Batch":
        """Some of the sequences."""
        return Batch(*(None if part is None else part[where] for part in self))  # type: ignore

    def heads(self, n_tokens: int) -> "Batch":
        """The first tokens of every sequence."""
        return Batch(*(None if part is None else part[:, :n_tokens] for part in self))  # type: ignore

    def split(self, sizes: Sequence[int]) -> "list[Batch]":
        """The batch cut into batches of so many sequences each."""
        ends = list(itertools.accumulate(sizes, initial=0))
        return [self.rows(slice(a, b)) for a, b in itertools.pairwise(ends)]

    @staticmethod
    def joined(batches: "Sequence[Batch]") -> "Batch":
        """Batches of equal sequence length as one."""
        parts = zip(*batches, strict=True)
        return Batch(*(None if part[0] is None else torch.cat(part) for part in parts))

    def n_targets(self) -> int:
        """How many tokens are predicted."""
        return int((self.targets != IGNORE).sum())
