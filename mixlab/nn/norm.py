"""Root mean square norm.

Source: Zhang, Sennrich [arXiv:1910.07467]. Computed in float32 or wider, whatever comes in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.ops.dtypes import at_least_float32


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), over the last dimension of size `dim`.

    Without a weight if it is `plain`.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6, plain: bool = False) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = None if plain else nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(at_least_float32(x), (self.dim,), self.weight, self.eps)
        return y.to(x.dtype)


class GatedRMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) * silu(gate), over the last dimension.

    The norm comes before the gate, as in Gated DeltaNet [arXiv:2412.06464].
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = F.rms_norm(at_least_float32(x), self.weight.shape, self.weight, self.eps)
        return (y * F.silu(at_least_float32(gate))).to(x.dtype)
