"""What a model is trained on in one step."""

from typing import NamedTuple

import torch

IGNORE = -100  # a target that is not predicted; the default of torch's cross-entropy


class Batch(NamedTuple):
    """Sequences with their targets.

    `segments` numbers the documents inside each sequence from 0; EOS belongs to the document that
    it ends. The target at EOS is the first token of the next document.
    """

    tokens: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, IGNORE where nothing is predicted
    segments: torch.Tensor  # (B, T) int32

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; from the CPU to an accelerator without waiting for the copy."""
        if torch.device(device).type == "cuda" and self.tokens.device.type == "cpu":
            return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in self))
        return Batch(*(part.to(device) for part in self))

    def n_targets(self) -> int:
        """How many tokens are predicted."""
        return int((self.targets != IGNORE).sum())
