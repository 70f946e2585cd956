"""Attention within short rows, every position to every other, from the joined projection.

    o_t = sum_s softmax_s(scale * R_t q_t . R_s k_s) v_s   over the row; R_t turns by position t

Rows of a puzzle are so short that reading and writing costs more than the products. The Triton
kernels read queries, keys and values once, where they lie, and turn them on the way.
Source: attention [arXiv:1706.03762], RoPE [arXiv:2104.09864], the recomputed softmax of
        FlashAttention [arXiv:2205.14135].
Cost:   O(T^2) time per row.
Shapes: B rows, T positions, H heads, K width of a head.
"""

import importlib.util
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixlab.core.errors import BackendError
from mixlab.ops.attention import attention
from mixlab.ops.rope import RopeTable, apply_rope

Backend = Literal["reference", "sdpa", "triton"]
"""`reference` is the definition, `sdpa` PyTorch's fused kernel after a turn of its own; `triton`
has one kernel for both on a CUDA GPU."""

MAX_LENGTH = 128
"""Positions of the longest row that one program of the Triton kernels can hold."""
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def row_attention(
    qkv: Tensor,  # (B, T, 3, H, K): queries, keys and values
    *,
    table: RopeTable | None,  # of T positions, all K channels turned in the layout `half`
    scale: float,
    backend: Backend,
) -> Tensor:
    """(B, T, H, K), with exactly the named backend. `triton` has no second derivatives.

    Raises:
        BackendError: the named backend cannot run on these inputs.
    """
    if backend == "triton":
        reason = obstacle(qkv.device, qkv.dtype, length=qkv.shape[1], head_dim=qkv.shape[-1])
        if reason:
            raise BackendError(
                f"row_attention: backend 'triton' cannot run: {reason}. backend 'sdpa' runs "
                "everywhere."
            )
        return _attend(qkv, *(table or (None, None)), scale)
    q, k, v = qkv.unbind(2)
    if table is not None:
        q, k = apply_rope(q, table), apply_rope(k, table)
    return attention(q=q, k=k, v=v, scale=scale, backend=backend, causal=False)


def obstacle(device: torch.device, dtype: torch.dtype, *, length: int, head_dim: int) -> str | None:
    """Why the Triton kernels cannot run on such rows; None where they can."""
    if device.type != "cuda":
        return f"the inputs are on {device.type}, and it needs a CUDA GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it works in half precision, and the inputs are {str(dtype).removeprefix('torch.')}"
    if length > MAX_LENGTH:
        return f"rows have {length} positions, and it holds {MAX_LENGTH}"
    if head_dim not in (32, 64, 128):
        return f"heads are {head_dim} wide, and it knows 32, 64 and 128"
    if not _HAS_TRITON:
        return "Triton is not installed"
    return None


@torch.library.custom_op("mixlab::row_attention", mutates_args=())
def _attend(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float) -> Tensor:
    from mixlab.ops.row_attention.kernels import run_forward

    return run_forward(qkv.contiguous(), cos, sin, scale)


@torch.library.custom_op("mixlab::row_attention_backward", mutates_args=())
def _attend_back(
    d_out: Tensor, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float
) -> Tensor:
    from mixlab.ops.row_attention.kernels import run_backward

    return run_backward(qkv.contiguous(), cos, sin, scale, d_out.contiguous())


@_attend.register_fake
def _(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float) -> Tensor:
    n, length, _, n_heads, width = qkv.shape
    return qkv.new_empty(n, length, n_heads, width)


@_attend_back.register_fake
def _(d_out: Tensor, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    qkv, cos, sin, ctx.scale = inputs
    ctx.save_for_backward(qkv, cos, sin)


def _back(ctx, d_out: Tensor) -> tuple:
    return _attend_back(d_out, *ctx.saved_tensors, ctx.scale), None, None, None


_attend.register_autograd(_back, setup_context=_save)


@register_flop_formula(torch.ops.mixlab.row_attention)
def _flops(qkv: torch.Size, *args, **kwargs) -> int:
    """Two products per pair of positions; a multiply-add counts 2."""
    n, length, _, n_heads, width = qkv
    return 4 * n * n_heads * length**2 * width


@register_flop_formula(torch.ops.mixlab.row_attention_backward)
def _back_flops(d_out: torch.Size, qkv: torch.Size, *args, **kwargs) -> int:
    """Twice those forwards, as PyTorch counts its own kernels: what is worked out anew is not."""
    return 2 * _flops(qkv)
