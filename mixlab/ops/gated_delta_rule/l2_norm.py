"""Length normalisation of queries and keys, as the delta rule's kernels do it."""

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the squared length before the root; the same in all backends."""


def inverse_length(x: Tensor) -> Tensor:
    """(..., K) -> (..., 1): 1 / sqrt(sum of squares + EPS)."""
    return (torch.linalg.vecdot(x, x) + EPS).rsqrt()[..., None]


def l2_norm(x: Tensor) -> Tensor:
    """x over its length along the last dimension; a zero vector stays zero."""
    return x * inverse_length(x)
