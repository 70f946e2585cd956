"""SwiGLU between two products: silu(gate) * up.

Source: Shazeer, "GLU Variants Improve Transformer" [arXiv:2002.05202].
Shapes: D width of the input, F width of the output.
"""

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Backend = Literal["eager", "triton"]
"""`eager` is the definition, in PyTorch; `triton` has kernels of its own for a CUDA GPU."""

LEAST_ROWS = 4096
"""Rows from which on the product with the gate inside is faster than one of cuBLAS before it."""
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def swiglu(x: Tensor, gate_weight: Tensor, up_weight: Tensor) -> Tensor:
    """silu(x @ gate_weight^T) * (x @ up_weight^T): (..., D) and two (F, D) to (..., F).

    On a GPU in half precision gate and up are one product, and nothing between it and the result
    passes through memory more than once.
    """
    if pick_backend(x.device, x.dtype) == "eager":
        return F.silu(F.linear(x, gate_weight)) * F.linear(x, up_weight)
    weight = torch.cat([gate_weight, up_weight])
    if torch.is_grad_enabled():
        return _gate(F.linear(x, weight))
    return _gated_product(x, weight.to(x.dtype))


def pick_backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The kernels for inputs of this kind: `triton` on a CUDA GPU in half precision."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return "triton" if device.type == "cuda" and is_half and _HAS_TRITON else "eager"


@torch.library.custom_op("mixlab::swiglu_gate", mutates_args=())
def _gate(gate_up: Tensor) -> Tensor:
    from mixlab.ops.swiglu.kernels import run_forward

    return run_forward(gate_up.contiguous())


@torch.library.custom_op("mixlab::swiglu_gate_backward", mutates_args=())
def _gate_back(d_out: Tensor, gate_up: Tensor) -> Tensor:
    from mixlab.ops.swiglu.kernels import run_backward

    return run_backward(d_out.contiguous(), gate_up.contiguous())


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """As `swiglu`, for gate and up above each other in the dtype of x (2 F, D); no gradient."""
    if pick_backend(x.device, x.dtype) == "eager":
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.silu(gate) * up
    from mixlab.ops.swiglu.kernels import BLOCK_D, BLOCK_F, run_forward, run_product

    n_rows, n_out = x.numel() // x.shape[-1], len(weight) // 2
    fits = n_rows >= LEAST_ROWS and x.shape[-1] % BLOCK_D == 0 and n_out % BLOCK_F == 0
    if not fits or torch.cuda.get_device_capability(x.device) < (9, 0):  # no bulk copies
        return run_forward(F.linear(x, weight))
    out = run_product(x.reshape(n_rows, -1).contiguous(), weight.contiguous())
    return out.view(*x.shape[:-1], n_out)


@torch.library.custom_op("mixlab::swiglu_product", mutates_args=())
def _gated_product(x: Tensor, weight: Tensor) -> Tensor:
    return gated_product(x, weight)


@_gate.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@_gate_back.register_fake
def _(d_out: Tensor, gate_up: Tensor) -> Tensor:
    return torch.empty_like(gate_up, memory_format=torch.contiguous_format)


@_gated_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight) // 2)


def _save(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _back(ctx, d_out: Tensor) -> Tensor:
    return _gate_back(d_out, *ctx.saved_tensors)


_gate.register_autograd(_back, setup_context=_save)


@register_flop_formula(torch.ops.mixlab.swiglu_product)
def _flops(x: torch.Size, weight: torch.Size, *args, **kwargs) -> int:
    """Of the product; a multiply-add counts 2."""
    return 2 * x.numel() * weight[0]
