"""The loss and its gradients in plain PyTorch, for any device and dtype."""

import torch
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32

CHUNK_LOGITS = 2**21
"""Logits of one chunk: 8 MB in float32, which stays in a CPU's cache and fits any GPU."""


def run(
    h: Tensor, weight: Tensor, targets: Tensor, wants_dh: bool, wants_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See operator.nats_and_gradients; h and weight come in one dtype."""
    wide = at_least_float32(h[:0]).dtype
    chunk = max(1, min(h.shape[0], CHUNK_LOGITS // weight.shape[0]))
    total = torch.zeros((), dtype=wide, device=h.device)
    dh = torch.empty_like(h) if wants_dh else h.new_empty(0)
    dweight = torch.zeros(weight.shape if wants_dweight else (0,), dtype=wide, device=h.device)
    for start in range(0, h.shape[0], chunk):
        rows = slice(start, start + chunk)
        # One fused pass over the logits; what it leaves is turned into the gradient in place.
        log_probs = (h[rows] @ weight.T).log_softmax(dim=-1, dtype=wide)  # (chunk, V)
        target = targets[rows, None]
        is_target = target >= 0
        index = target.clamp(min=0)
        total -= torch.where(is_target, log_probs.gather(1, index), 0).sum()
        if not (wants_dh or wants_dweight):
            continue
        # d nats / d logits = softmax - onehot; narrowed first, since half the bytes move then.
        dlogits = log_probs.exp_().to(h.dtype)
        dlogits.scatter_add_(1, index, dlogits.new_full(index.shape, -1.0))
        dlogits.mul_(is_target)
        if wants_dh:
            torch.mm(dlogits, weight, out=dh[rows])
        if wants_dweight:
            dweight += dlogits.T @ h[rows]
    return total, dh, dweight
