"""The short convolution as an operator of PyTorch's: torch.compile takes it whole, without a break.

Backward is an operator of its own; it has no derivative.
"""

import torch
from torch import Tensor

from mixlab.ops.causal_conv import shift


@torch.library.custom_op("mixlab::causal_conv", mutates_args=())
def convolve(
    x: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, W)
    tail: Tensor | None,  # (B, W - 1, C), dtype of x
    reach: Tensor | None,  # (B, T), tokens of the same document before each
    silu: bool,
    widths: list[int],  # of the outputs; C together
    backend: str,  # "shift" or "triton"
) -> list[Tensor]:
    """(B, T, width) each, contiguous, dtype of x."""
    return _module(backend).forward(x, weight, tail, reach, silu, widths)


@torch.library.custom_op("mixlab::causal_conv_backward", mutates_args=())
def convolve_backward(
    dys: list[Tensor],  # (B, T, width) each
    x: Tensor,
    weight: Tensor,
    tail: Tensor | None,
    reach: Tensor | None,
    silu: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of x, of weight and, if there is one, of tail."""
    return _module(backend).backward(dys, x, weight, tail, reach, silu)


def _module(backend: str):
    if backend == "shift":
        return shift
    from mixlab.ops.causal_conv import triton_kernels  # imports triton: GPU only

    return triton_kernels


@convolve.register_fake
def _(x, weight, tail, reach, silu, widths, backend):
    return [x.new_empty(*x.shape[:2], width) for width in widths]


@convolve_backward.register_fake
def _(dys, x, weight, tail, reach, silu, backend):
    found = [x.new_empty(x.shape), weight.new_empty(weight.shape)]
    return found if tail is None else [*found, tail.new_empty(tail.shape)]


def _save(ctx, inputs, output) -> None:
    x, weight, tail, reach, silu, widths, backend = inputs
    ctx.save_for_backward(x, weight, tail, reach)
    ctx.silu, ctx.widths, ctx.backend = silu, widths, backend


def _backward(ctx, dys):
    x, weight, tail, reach = ctx.saved_tensors
    dys = [
        x.new_zeros(*x.shape[:2], width) if dy is None else dy
        for dy, width in zip(dys, ctx.widths, strict=True)
    ]
    dx, dweight, *rest = convolve_backward(dys, x, weight, tail, reach, ctx.silu, ctx.backend)
    return dx, dweight, rest[0] if rest else None, None, None, None, None


convolve.register_autograd(_backward, setup_context=_save)
