"""Mixture of experts: choosing experts for tokens, and running every expert on its tokens.

    y_n = sum over the chosen experts e of  weight_ne * expert_e(x_n)

No token is ever dropped, so what a token gets does not depend on the others in its batch.
Source: Switch Transformer [arXiv:2101.03961] (balance loss), ST-MoE [arXiv:2202.08906] (z-loss),
        DeepSeek-V3 [arXiv:2412.19437] (sigmoid scores, balance by a bias [arXiv:2408.15664]),
        MegaBlocks [arXiv:2211.15841] (dropless, grouped).
Shapes: N tokens, D width, E experts, k experts per token, F expert width; M = N * k rows, one per
        token and chosen expert.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mixlab.core.errors import BackendError
from mixlab.ops.dtypes import at_least_float32

Backend = Literal["grouped", "loop"]
Scores = Literal["softmax", "sigmoid"]
Activation = Literal["swiglu", "silu"]


# --- routing ----------------------------------------------------------------------------------


class Routing(NamedTuple):
    """Who takes what; all of it in float32 or wider."""

    indices: Tensor  # (N, k) int64, the chosen experts
    weights: Tensor  # (N, k), what their outputs are multiplied with
    logits: Tensor  # (N, E)
    probs: Tensor  # (N, E), the router's distribution: scores divided by their sum


def route(
    *,
    logits: Tensor,  # (N, E)
    n_active: int,
    scores: Scores,
    normalize: bool,
    scaling: float = 1.0,
    selection_bias: Tensor | None = None,  # (E,)
) -> Routing:
    """Choose the `n_active` experts of highest score for every token.

    `normalize` divides the chosen scores by their sum: with softmax that is the softmax over the
    chosen logits alone. `selection_bias` is added for the choice only, never to the weights.
    """
    logits = at_least_float32(logits)
    score = logits.softmax(dim=-1) if scores == "softmax" else logits.sigmoid()  # (N, E)
    ranking = score if selection_bias is None else score + selection_bias
    indices = ranking.detach().topk(n_active, dim=-1).indices  # (N, k)
    weights = score.gather(-1, indices)
    if normalize:
        # Sigmoid scores may all underflow to 0; the constant is DeepSeek-V3's.
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    probs = score if scores == "softmax" else score / (score.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(indices, weights * scaling, logits, probs)


def count_tokens(indices: Tensor, n_experts: int) -> Tensor:
    """(E,) int64, rows that each expert takes; unlike `bincount`, never waits for a GPU."""
    flat = indices.flatten()
    return flat.new_zeros(n_experts).scatter_add_(0, flat, torch.ones_like(flat))


def balance_loss(probs: Tensor, counts: Tensor) -> Tensor:
    """Switch's load-balancing loss, E * sum_e share_e * mean_n probs_ne, for any k.

    1 when both tokens and probabilities are spread evenly, up to E when one expert takes all.
    Only the probabilities carry gradient.
    """
    share = counts.to(probs.dtype) / counts.sum()  # (E,), sums to 1
    return probs.shape[-1] * (share * probs.mean(dim=0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """ST-MoE's router z-loss: mean over tokens of logsumexp(logits)^2, in nats^2."""
    return logits.logsumexp(dim=-1).square().mean()


def balanced_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """The selection bias after one update: up by `rate` where an expert had less than the mean."""
    load = counts.to(bias.dtype)
    return bias + rate * (load.mean() - load).sign()


# --- running the experts ----------------------------------------------------------------------


def experts(
    *,
    x: Tensor,  # (N, D)
    indices: Tensor,  # (N, k)
    weights: Tensor,  # (N, k)
    up: Tensor,  # (E, F, D), or (E, 2 F, D) with the gate's rows first
    down: Tensor,  # (E, D, F)
    activation: Activation,
    backend: Backend | Literal["auto"] = "auto",
    preferred: Sequence[str] = (),
) -> Tensor:
    """(N, D): every token's chosen experts, weighted and summed.

    `swiglu` is down(silu(gate x) * up x), `silu` is down(silu(up x)). `auto` is what is `preferred`
    and can run, else `grouped` where it can, else `loop`.

    Raises:
        BackendError: `grouped` was asked for and cannot take these widths on a GPU.
    """
    if torch.is_autocast_enabled(x.device.type):  # grouped products know nothing of autocast
        dtype = torch.get_autocast_dtype(x.device.type)
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
    if backend == "auto":
        widths = (x.shape[1], up.shape[1], down.shape[2])
        usable = usable_backends(x.device, x.dtype, widths)
        backend = next((name for name in usable if name in preferred), usable[0])
    run = _loop if backend == "loop" else _grouped
    return run(x, indices, weights, up, down, activation)


def usable_backends(
    device: torch.device, dtype: torch.dtype, widths: Sequence[int]
) -> list[Backend]:
    """The backends that take experts of these widths, the one that `auto` means first."""
    is_kernel = device.type == "cuda" and dtype == torch.bfloat16
    fits = not is_kernel or all(width % 8 == 0 for width in widths)
    return ["grouped", "loop"] if fits else ["loop"]


def _activate(h: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(h)
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def _loop(
    x: Tensor, indices: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: Activation
) -> Tensor:
    """The definition, one expert after the other: what `grouped` is held to."""
    y = torch.zeros_like(x, dtype=at_least_float32(x[:0]).dtype)
    for e in range(up.shape[0]):
        rows, slots = (indices == e).nonzero(as_tuple=True)
        out = F.linear(_activate(F.linear(x[rows], up[e]), activation), down[e])
        y = y.index_add(0, rows, (out * weights[rows, slots, None]).to(y.dtype))
    return y.to(x.dtype)


def _grouped(
    x: Tensor, indices: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: Activation
) -> Tensor:
    """Sort the rows by expert, so that every expert's rows lie together in one product.

    bfloat16 on a GPU is one kernel for all experts, which reads there how many rows each has.
    Everything else takes the experts in turn, for which the numbers of rows are read once: free on
    a CPU, a wait on a GPU.
    """
    n, k = indices.shape
    order = indices.flatten().argsort(stable=True)  # (M,), row of the unsorted at each sorted place
    ends = count_tokens(indices, up.shape[0]).cumsum(0)  # (E,)
    if x.device.type != "cuda" or x.dtype != torch.bfloat16:
        sorted_weights = weights.flatten()[order]
        y, _ = _in_turn(x, sorted_weights, up, down, order // k, ends, activation)
        return y.to(x.dtype)
    place = torch.empty_like(order)  # (M,), the inverse of `order`
    place[order] = torch.arange(order.numel(), device=order.device)
    rows = _Spread.apply(x, order, place, k)  # (M, D)
    hidden = _activate(_grouped_product(rows, up, ends), activation)  # (M, F)
    out = _grouped_product(hidden, down, ends)  # (M, D)
    out = _Spread.apply(out, place, order, 1).view(n, k, -1)  # (N, k, D), in the tokens' order
    return (at_least_float32(out) * weights[..., None]).sum(dim=1).to(x.dtype)


def _grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """(M, d_out): rows ends[e - 1] to ends[e] of x (M, d_in) times weight[e].T (d_out, d_in)."""
    if x.shape[1] % 8 or weight.shape[1] % 8:
        raise BackendError(
            f"The experts' backend 'grouped' takes widths that are multiples of 8 in bfloat16 on a "
            f"GPU, and these are {x.shape[1]} and {weight.shape[1]}. Change d_expert or d_model, "
            f"or set backend=loop."
        )
    return F.grouped_mm(x, weight.mT, offs=ends.to(torch.int32))


class _Spread(torch.autograd.Function):
    """Row i of the result is row order[i] // k of x: k copies of each row, permuted.

    The gradient is a gather as well, not a scatter, so it is the same on every run.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.k = k
        return x[order // k if k > 1 else order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):
        (place,) = ctx.saved_tensors
        grad = grad[place]
        return (grad.unflatten(0, (-1, ctx.k)).sum(dim=1) if ctx.k > 1 else grad), None, None, None


# One expert after the other over sorted rows, keeping only the rows' first product.
#
# Temporaries are those of one expert, and gradients of the weights are written in place: on a CPU,
# touching fresh memory costs as much as many of the products. A token takes an expert once, so the
# rows that an expert adds are distinct and the sums come out the same on every run. As ops of
# their own, they can read the numbers of rows without cutting a compiled graph in two.


@torch.library.custom_op("mixlab::experts_in_turn", mutates_args=())
def _in_turn(
    x: Tensor,  # (N, D)
    weights: Tensor,  # (M,), sorted by expert, as are the rows of `tokens`
    up: Tensor,
    down: Tensor,
    tokens: Tensor,  # (M,) int64
    ends: Tensor,  # (E,) int64
    activation: str,
) -> tuple[Tensor, Tensor]:
    """The weighted sums (N, D), float32 or wider, and the rows' first product (M, F)."""
    h = x.new_empty(tokens.shape[0], up.shape[1])
    y = torch.zeros_like(x, dtype=at_least_float32(x[:0]).dtype)
    for e, rows in _slices(ends.tolist()):
        torch.mm(x[tokens[rows]], up[e].T, out=h[rows])
        out = at_least_float32(_activate(h[rows], activation) @ down[e].T)
        y.index_add_(0, tokens[rows], out * weights[rows, None])
    return y, h


@_in_turn.register_fake
def _(x, weights, up, down, tokens, ends, activation):
    h = x.new_empty(tokens.shape[0], up.shape[1])
    return torch.empty_like(x, dtype=at_least_float32(x[:0]).dtype), h


@torch.library.custom_op("mixlab::experts_in_turn_backward", mutates_args=())
def _in_turn_backward(
    grad: Tensor, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, tokens: Tensor,
    ends: Tensor, h: Tensor, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weights, up and down."""
    dx, dweights = torch.zeros_like(grad), torch.empty_like(weights)
    dup, ddown = torch.empty_like(up), torch.empty_like(down)
    for e, rows in _slices(ends.tolist()):
        token, weight = tokens[rows], weights[rows, None]
        g, a = grad[token], _activate(h[rows], activation)
        # The output is weight * down @ a, so one product serves the weight and a alike.
        da = g.to(x.dtype) @ down[e]
        dweights[rows] = torch.linalg.vecdot(at_least_float32(da), at_least_float32(a))
        torch.mm((g * weight).to(x.dtype).T, a, out=ddown[e])  # zeros without any row
        dh = _activate_backward((da * weight).to(x.dtype), h[rows], activation)
        torch.mm(dh.T, x[token], out=dup[e])
        dx.index_add_(0, token, (dh @ up[e]).to(dx.dtype))
    return dx.to(x.dtype), dweights, dup, ddown


@_in_turn_backward.register_fake
def _(grad, x, weights, up, down, tokens, ends, h, activation):
    return tuple(torch.empty_like(part) for part in (x, weights, up, down))


def _keep_in_turn(ctx, inputs, output):
    *saved, ctx.activation = inputs
    ctx.save_for_backward(*saved, output[1])
    ctx.mark_non_differentiable(output[1])


def _in_turn_gradient(ctx, grad, _):
    grads = _in_turn_backward(grad.contiguous(), *ctx.saved_tensors, ctx.activation)
    return *grads, None, None, None


_in_turn.register_autograd(_in_turn_gradient, setup_context=_keep_in_turn)


@register_flop_formula(torch.ops.mixlab.experts_in_turn)
def _in_turn_flops(x, weights, up, down, *args, **kwargs) -> int:
    """Two products per row; a multiply-add counts 2."""
    return 2 * weights.numel() * (up[1] * up[2] + down[1] * down[2])


@register_flop_formula(torch.ops.mixlab.experts_in_turn_backward)
def _in_turn_backward_flops(grad, x, weights, up, down, *args, **kwargs) -> int:
    return 2 * _in_turn_flops(x, weights, up, down)


def _activate_backward(da: Tensor, h: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_backward(da, h)
    gate, up = h.chunk(2, dim=-1)
    dh = torch.empty_like(h)
    dgate, dup = dh.chunk(2, dim=-1)
    torch.mul(da, F.silu(gate), out=dup)
    dgate.copy_(torch.ops.aten.silu_backward(da * up, gate))
    return dh


def _slices(ends: list[int]) -> list[tuple[int, slice]]:
    starts = [0, *ends[:-1]]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(zip(starts, ends, strict=True))]
