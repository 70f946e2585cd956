"""Angles of the positions of a row, kept by whoever turns queries and keys.

Compiled code would otherwise work out a sine and a cosine anew for every number that it turns.
"""

import torch
from torch import Tensor, nn

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.rope import RopeTable, rope_table


class RotaryAngles(nn.Module):
    """cos and sin of `dim` / 2 wavelengths with base `theta`.

    A table serves positions up to `grow`; beyond it, and in precisions other than float32, angles
    are worked out at each call, to the same numbers.
    """

    def __init__(self, dim: int, theta: float, *, length: int = 0) -> None:
        super().__init__()
        self.dim, self.theta = dim, theta
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(0, dim // 2), persistent=False)
        self.grow(length)

    def grow(self, n_positions: int) -> None:
        """Keep the angles of so many positions at least; never inside compiled code."""
        if len(self.cos) >= n_positions:
            return
        with torch.inference_mode(False), torch.no_grad():
            # Powers of two, so that texts of many lengths make few tables.
            positions = torch.arange(1 << (n_positions - 1).bit_length(), device=self.cos.device)
            table = rope_table(positions, self.dim, self.theta, torch.float32)
            self.cos, self.sin = table.cos.to(self.cos.dtype), table.sin.to(self.cos.dtype)

    def forward(self, n_seen: int, x: Tensor) -> RopeTable:
        """For the tokens of x (B, T, ...), which come after `n_seen` others."""
        end, dtype = n_seen + x.shape[1], at_least_float32(x[:0]).dtype
        # Not in float64 tests; and a model that was narrowed has narrowed the table.
        if end <= len(self.cos) and self.cos.dtype == dtype == torch.float32:
            return RopeTable(self.cos[n_seen:end], self.sin[n_seen:end])
        positions = torch.arange(n_seen, end, device=x.device)
        return rope_table(positions, self.dim, self.theta, dtype)
