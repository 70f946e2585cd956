"""Linear layer and embedding with their initial weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` whose weights start as N(0, 1 / d_in), so a unit-scale input keeps its scale."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Token embedding; starts as N(0, 0.02^2), so that a tied head begins near uniform."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)  # (B, T) -> (B, T, D)


def project_together(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """`layers` applied to the same x; on a GPU as one wide product.

    There one product is faster than several narrow ones, and so is the gradient of x, which is
    then one product as well instead of a sum of several. The layers have all a bias or none.
    """
    if x.device.type != "cuda":
        return tuple(layer(x) for layer in layers)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    y = F.linear(x, torch.cat([layer.weight for layer in layers]), bias)
    return y.split([layer.out_features for layer in layers], dim=-1)
