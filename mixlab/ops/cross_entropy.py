"""Cross-entropy of a linear head, without ever holding all logits in float32.

    nats = sum over targets of  logsumexp(W h) - (W h)[target]

The `chunked` backend works through the rows in pieces and computes the gradients during the
forward pass, so the largest intermediate is (chunk, vocab) and nothing is computed twice.
Shapes: N tokens, D width, V vocabulary.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32

IGNORE = -100
"""Target of a position that has none; it adds nothing to loss, gradient or counts."""

Backend = Literal["chunked", "reference"]
CHUNK_LOGITS = 2**21
"""Logits of one chunk: 8 MB in float32, which stays in a CPU's cache and fits any GPU."""


def linear_cross_entropy(
    h: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,), IGNORE where there is none
    *,
    compute_dtype: torch.dtype | None = None,
    backend: Backend = "chunked",
) -> Tensor:
    """Sum of nats over all targets, a scalar in float32 or wider.

    `compute_dtype` is the dtype of the matrix products (None: that of `h`); the softmax is always
    float32 or wider.
    """
    dtype = compute_dtype or h.dtype
    with torch.autocast(h.device.type, enabled=False):
        if backend == "reference":
            logits = at_least_float32(h.to(dtype) @ weight.to(dtype).T)  # (N, V)
            return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return _Chunked.apply(h.to(dtype), weight.to(dtype), targets)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_grad = h.requires_grad or weight.requires_grad
        wide = at_least_float32(h[:0]).dtype
        chunk = max(1, min(h.shape[0], CHUNK_LOGITS // weight.shape[0]))
        total = torch.zeros((), dtype=wide, device=h.device)
        dh = torch.empty_like(h) if wants_grad else None
        dweight = torch.zeros_like(weight, dtype=wide) if wants_grad else None
        for start in range(0, h.shape[0], chunk):
            rows = slice(start, start + chunk)
            # One fused pass over the logits; what it leaves is turned into the gradient in place.
            log_probs = (h[rows] @ weight.T).log_softmax(dim=-1, dtype=wide)  # (chunk, V)
            target = targets[rows, None]
            is_target = target != IGNORE
            index = target.clamp(min=0)
            total -= torch.where(is_target, log_probs.gather(1, index), 0).sum()
            if dh is None or dweight is None:
                continue
            # d nats / d logits = softmax - onehot; narrowed first, since half the bytes move then.
            dlogits = log_probs.exp_().to(h.dtype)
            dlogits.scatter_add_(1, index, dlogits.new_full(index.shape, -1.0))
            dlogits.mul_(is_target)
            torch.mm(dlogits, weight, out=dh[rows])
            dweight += dlogits.T @ h[rows]
        ctx.save_for_backward(*(x for x in (dh, dweight) if x is not None))
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        dh, dweight = ctx.saved_tensors
        return dh * grad.to(dh.dtype), (dweight * grad).to(ctx.weight_dtype), None


class TokenScores(NamedTuple):
    nats: Tensor  # (N,), float32 or wider; 0 where there is no target
    is_correct: Tensor  # (N,) bool, the target had the highest logit


@torch.no_grad()
def score_tokens(h: Tensor, weight: Tensor, targets: Tensor) -> TokenScores:
    """Nats and hits of every target, with the head and the softmax in float32 or wider.

    `h` (N, D), `weight` (V, D), `targets` (N,). This is what every reported loss is made of.
    """
    with torch.autocast(h.device.type, enabled=False):
        h, weight = at_least_float32(h), at_least_float32(weight)
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        nats, hits = [], []
        for start in range(0, h.shape[0], chunk):
            logits = h[start : start + chunk] @ weight.T  # (chunk, V)
            target = targets[start : start + chunk]
            nats.append(F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none"))
            hits.append(logits.argmax(dim=-1) == target)
        return TokenScores(torch.cat(nats), torch.cat(hits))
