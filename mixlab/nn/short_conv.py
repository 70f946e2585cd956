"""The short causal convolution as a module: one set of taps per channel, no bias."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mixlab.ops.causal_conv import Backend, ConvParts, causal_conv_parts
from mixlab.ops.packing import Packing


class ShortConv(nn.Module):
    """SiLU of a depthwise causal convolution with `size` taps; see ops/causal_conv.py."""

    def __init__(
        self, n_channels: int, size: int, *, backend: Backend | Literal["auto"] = "auto"
    ) -> None:
        super().__init__()
        self.backend = backend
        self.preferred: tuple[str, ...] = ()  # settles `auto`, see the op
        # The shape of a depthwise nn.Conv1d, so that weights move to and fro by name.
        self.weight = nn.Parameter(torch.empty(n_channels, 1, size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform with the bound that nn.Conv1d uses, 1 / sqrt(taps)."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self,
        x: Tensor,
        widths: Sequence[int],
        tail: Tensor | None = None,
        packing: Packing | None = None,
    ) -> ConvParts:
        """(B, T, C) -> (B, T, width) each; `tail` (B, size - 1, C) is what came before x."""
        return causal_conv_parts(
            x=x, weight=self.weight.squeeze(1), widths=widths, tail=tail, packing=packing,
            backend=self.backend, preferred=self.preferred,
        )  # fmt: skip
