"""The definition of the short convolution, tap by tap: what every other backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32


def run_reference(
    x: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, W)
    tail: Tensor | None,  # (B, W - 1, C)
    reach: Tensor | None,  # (B, T), tokens of the same document before each
    silu: bool,
) -> Tensor:
    """(B, T, C); differentiable any number of times."""
    wide, n_taps, n_tokens = at_least_float32(x), weight.shape[1], x.shape[1]
    if tail is None:
        tail = x.new_zeros(x.shape[0], n_taps - 1, x.shape[2])
    padded = torch.cat([at_least_float32(tail), wide], dim=1)  # (B, W - 1 + T, C)
    y = torch.zeros_like(wide)
    for lag in range(n_taps):
        start = n_taps - 1 - lag
        seen = padded[:, start : start + n_tokens]
        if reach is not None:
            seen = torch.where((reach >= lag)[..., None], seen, 0.0)
        y = y + seen * at_least_float32(weight[:, start])
    return (F.silu(y) if silu else y).to(x.dtype)
