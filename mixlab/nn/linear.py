"""Linear layer and embedding with their initial weights."""

import torch
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
