"""The loss as an operator of PyTorch's: torch.compile takes it whole, without a break.

The gradients are outputs, made in the forward pass; backward only scales them.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixlab.ops.cross_entropy import chunked
from mixlab.ops.dtypes import at_least_float32

IGNORE = -100
"""Target of a position that has none; it adds nothing to loss, gradient or counts."""


@torch.library.custom_op("mixlab::linear_cross_entropy", mutates_args=())
def nats_and_gradients(
    h: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,)
    dtype: torch.dtype,  # of the matrix products
    wants_dh: bool,
    wants_dweight: bool,
    backend: str,  # "chunked" or "fused"
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of nats, its gradients (N, D) in `dtype` and (V, D) in float32 or wider.

    A gradient that is not wanted is an empty tensor.
    """
    inputs = (h.to(dtype), weight.to(dtype), targets, wants_dh, wants_dweight)
    if backend == "chunked":
        return chunked.run(*inputs)
    from mixlab.ops.cross_entropy import fused  # imports triton: GPU only

    return fused.run(*inputs)


@nats_and_gradients.register_fake
def _(h, weight, targets, dtype, wants_dh, wants_dweight, backend):
    wide = at_least_float32(h.new_empty(0, dtype=dtype))
    return (
        wide.new_empty(()),
        h.new_empty(h.shape if wants_dh else (0,), dtype=dtype),
        wide.new_empty(weight.shape if wants_dweight else (0,)),
    )


def _save(ctx, inputs, output) -> None:
    h, weight, _, _, ctx.wants_dh, ctx.wants_dweight, _ = inputs
    _, dh, dweight = output
    ctx.save_for_backward(dh, dweight)
    ctx.h_dtype, ctx.weight_dtype = h.dtype, weight.dtype
    ctx.set_materialize_grads(False)  # nobody asks for gradients of gradients


def _backward(ctx, grad, *_):
    if grad is None:
        return None, None, None, None, None, None, None
    dh, dweight = ctx.saved_tensors
    dh = (dh * grad.to(dh.dtype)).to(ctx.h_dtype) if ctx.wants_dh else None
    dweight = (dweight * grad).to(ctx.weight_dtype) if ctx.wants_dweight else None
    return dh, dweight, None, None, None, None, None


nats_and_gradients.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.mixlab.linear_cross_entropy)
def _flops(h, weight, targets, dtype, wants_dh, wants_dweight, *args, **kwargs) -> int:
    """Logits, and a product for each gradient; a multiply-add counts 2."""
    return 2 * h.numel() * weight[0] * (1 + wants_dh + wants_dweight)
