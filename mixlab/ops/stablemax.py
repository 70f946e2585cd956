"""Losses of labels under softmax and under stablemax.

    p_i = s(x_i) / sum_j s(x_j)   with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below

grows only linearly, so that a right answer never saturates. Computed in float64, as published.
Source: Prieto et al., "Grokking at the edge of numerical stability" [arXiv:2501.04697].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32


def label_nats(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """Surprise at each label; logits (..., V), labels (...) int64, `softmax` or `stablemax`."""
    if loss_type == "stablemax":
        return stablemax_nats(logits, labels)
    flat = at_least_float32(logits).flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), reduction="none").view(labels.shape)


def stablemax_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label under stablemax, float32 or wider."""
    x = logits.to(torch.float64)
    # Both branches are computed, so the unused one is kept away from its pole at x = 1.
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    p = s.gather(-1, labels[..., None])[..., 0] / s.sum(dim=-1)
    return -p.log().to(at_least_float32(logits).dtype)
