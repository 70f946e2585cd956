"""FlashAttention over packed rows, as an op that compiled code keeps whole.

PyTorch carries the kernel (FlashAttention-2 [arXiv:2307.08691]). It takes rows of several documents
as one long row with offsets, so nothing is spent on pairs of tokens that may not see each other.
Shapes: B batch, T tokens, N = B * T, H query heads, G key-value heads, K width of a head.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixlab.ops.packing import Packing

_HALF = (torch.bfloat16, torch.float16)
_aten = torch.ops.aten
WIDEST = 256
"""The widest head that the kernel takes."""


def flash_obstacle(
    device: torch.device, dtype: torch.dtype, *, k_dim: int, v_dim: int, has_prefix: bool
) -> str | None:
    """Why the kernel cannot take such inputs; None if it can."""
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernels need CUDA"
    if _capability(device.index or 0) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if dtype not in _HALF:
        name = str(dtype).removeprefix("torch.")
        return f"its kernels take float16 and bfloat16 only, and the inputs are {name}"
    if k_dim != v_dim or k_dim > WIDEST or k_dim % 8:
        return (
            f"it takes heads of one width up to {WIDEST}, a multiple of 8, and these are {k_dim} "
            f"(queries and keys) and {v_dim} (values) wide"
        )
    if has_prefix:
        return "it has no prompts that are read both ways"
    return None


@torch.compiler.assume_constant_result
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def run_flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, packing: Packing | None
) -> Tensor:
    """(B, T, H, K), (B, T, G, K) twice -> (B, T, H, K); T queries and as many keys."""
    n_rows, n_tokens = q.shape[:2]
    if packing is None:
        cu_seqlens = torch.arange(
            0, n_rows * n_tokens + 1, n_tokens, dtype=torch.int32, device=q.device
        )
    else:
        cu_seqlens = packing.cu_seqlens
    flat = (x.flatten(0, 1) for x in (q, k, v))
    # A row's length bounds that of its documents: the true maximum would differ batch by batch.
    o = flash_forward(*flat, cu_seqlens, n_tokens, scale, -1 if window is None else window - 1)[0]
    return o.unflatten(0, (n_rows, n_tokens))


@torch.library.custom_op("mixlab::flash_attention", mutates_args=(), device_types="cuda")
def flash_forward(
    q: Tensor,  # (N, H, K)
    k: Tensor,  # (N, G, K)
    v: Tensor,  # (N, G, K)
    cu_seqlens: Tensor,  # (n_documents + 1,) int32
    longest: int,
    scale: float,
    n_before: int,  # keys seen before a query's own; -1: all
) -> tuple[Tensor, Tensor]:
    """Output (N, H, K) and log-sum-exp (H, N), causal within each document."""
    o, lse, *_ = _aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, 0.0, True, False,
        scale=scale, window_size_left=n_before, window_size_right=0,
    )  # fmt: skip
    return o, lse


@flash_forward.register_fake
def _(q, k, v, cu_seqlens, longest, scale, n_before):
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    return q.new_empty(q.shape), lse


@torch.library.custom_op("mixlab::flash_attention_backward", mutates_args=(), device_types="cuda")
def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, cu_seqlens: Tensor,
    longest: int, scale: float, n_before: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values."""
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout that is off
    dq, dk, dv = _aten._flash_attention_backward(
        do, q, k, v, o, lse, cu_seqlens, cu_seqlens, longest, longest, 0.0, True,
        seed, torch.empty(0, device=q.device),
        scale=scale, window_size_left=n_before, window_size_right=0,
    )  # fmt: skip
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@flash_backward.register_fake
def _(do, q, k, v, o, lse, cu_seqlens, longest, scale, n_before):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_for_flash(ctx, inputs, output):
    q, k, v, cu_seqlens, *ctx.settings = inputs
    o, lse = output
    ctx.save_for_backward(q, k, v, o, lse, cu_seqlens)
    ctx.mark_non_differentiable(lse)


def _flash_gradient(ctx, do, _):
    dq, dk, dv = flash_backward(do.contiguous(), *ctx.saved_tensors, *ctx.settings)
    return dq, dk, dv, None, None, None, None


flash_forward.register_autograd(_flash_gradient, setup_context=_keep_for_flash)


@register_flop_formula(torch.ops.mixlab.flash_attention)
def _flops(q, k, v, cu_seqlens, longest: int, *args, **kwargs) -> int:
    """Two products over whole rows, as PyTorch counts its own kernels, documents or not."""
    return 4 * q.numel() * longest


@register_flop_formula(torch.ops.mixlab.flash_attention_backward)
def _backward_flops(do, q, k, v, o, lse, cu_seqlens, longest: int, *args, **kwargs) -> int:
    return 10 * q.numel() * longest
