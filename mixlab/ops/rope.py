"""Rotary position embedding.

Source: Su et al., "RoFormer" [arXiv:2104.09864]. `half`: channel i turns with channel i + R/2, as
Llama and Qwen do; `interleaved`: channel 2i turns with 2i + 1, as DeepSeek does.
Shapes: B batch, T tokens, H heads, K width of a head, R rotated channels, R <= K and even.
"""

from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["half", "interleaved"]

HAS_TRITON = find_spec("triton") is not None


class RopeTable(NamedTuple):
    cos: Tensor  # (T, R / 2), or (B, T, R / 2), float32 or wider
    sin: Tensor


def rope_table(positions: Tensor, rope_dim: int, theta: float, dtype: torch.dtype) -> RopeTable:
    """Angles of every position, (T,) or (B, T): position * theta ** (-2 i / R) for i < R / 2."""
    exponents = torch.arange(0, rope_dim, 2, device=positions.device, dtype=dtype) / rope_dim
    angles = positions.to(dtype)[..., None] * theta**-exponents
    return RopeTable(angles.cos(), angles.sin())


def apply_rope(x: Tensor, table: RopeTable, layout: Layout = "half") -> Tensor:
    """Turn the first R channels of (B, T, H, K); the remaining K - R pass through."""
    if _can_turn_at_once(x, table):
        from mixlab.ops import rope_triton  # imports triton: GPU only

        return rope_triton.turn(x, table.cos, table.sin, interleaved=layout == "interleaved")
    cos, sin = table.cos[..., None, :], table.sin[..., None, :]  # (T, 1, R/2) or (B, T, 1, R/2)
    rope_dim = 2 * cos.shape[-1]
    turned, kept = x[..., :rope_dim], x[..., rope_dim:]
    if layout == "half":
        a, b = turned.chunk(2, dim=-1)
        out = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    out = out.to(x.dtype)
    return out if kept.shape[-1] == 0 else torch.cat([out, kept], dim=-1)


def _can_turn_at_once(x: Tensor, table: RopeTable) -> bool:
    """Where nothing else makes one kernel of it: neither autograd nor torch.compile has a say."""
    if not (x.is_cuda and HAS_TRITON) or torch.compiler.is_compiling():
        return False
    is_known = x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    return is_known and table.cos.dtype == torch.float32 and not needs_gradient
