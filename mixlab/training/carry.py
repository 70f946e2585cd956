"""What a refiner's updates hand on: the examples that come in, the carry, the result of a segment.

Shapes: B rows, L positions, D width of the states.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.nn.recursion.refiner import Segment
from mixlab.training.cuda_graphs import Form

PAD = 0
"""The label of positions that nothing is asked of."""


class Carry(NamedTuple):
    """What belongs to the examples in the batch, one row each."""

    z_H: Tensor
    z_L: Tensor
    steps: Tensor  # (B,) int64, segments done
    halted: Tensor  # (B,) bool, to be replaced before the next segment
    least: Tensor  # (B,) int64, segments that exploration asks of this example
    inputs: Tensor  # (B, L) int64
    labels: Tensor  # (B, L) int64
    given: Tensor  # (B, L) bool


class Examples(NamedTuple):
    """What an update may admit, made on the CPU."""

    inputs: Tensor  # (B, L) uint8
    labels: Tensor  # (B, L) uint8
    given: Tensor  # (B, L) bool
    least: Tensor  # (B,) int64, as in `Carry`

    # --- for training/cuda_graphs.py ------------------------------------------------------------

    def form(self) -> Form:
        return tuple(self.inputs.shape)

    def resident(self, device: torch.device) -> "Examples":
        return Examples(*(part.to(device, copy=True) for part in self))

    def write_into(self, resident: "Examples") -> None:
        for part, target in zip(self, resident, strict=True):
            target.copy_(part, non_blocking=True)


class SegmentLoss(NamedTuple):
    """The loss of one segment with the figures that go with it."""

    loss: Tensor  # (B,) what is minimized, without auxiliary losses
    lm_loss: Tensor  # (B,) nats, mean over the row's labels
    heads: dict[str, Tensor]  # (B,) losses of the halting head, unweighted
    right: Tensor  # (B, L) bool, true where nothing is asked
    segment: Segment
