"""Cross-entropy of a linear head, without ever holding all logits in float32.

    nats = sum over targets of  logsumexp(W h) - (W h)[target]

Both fast backends work through the rows in chunks and compute the gradients during the forward
pass, so the largest intermediate is (chunk, vocab) and nothing is computed twice. `chunked` is
plain PyTorch in chunks of a cache's size; `fused` takes chunks of a GPU's size and turns each
chunk of logits into its gradient in place, by one Triton kernel.
Shapes: N tokens, D width, V vocabulary.
"""

from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.core.errors import BackendError
from mixlab.ops.cross_entropy.operator import IGNORE, nats_and_gradients
from mixlab.ops.cross_entropy.scoring import TokenScores, score_tokens
from mixlab.ops.dtypes import at_least_float32

__all__ = [
    "IGNORE", "Backend", "TokenScores", "linear_cross_entropy", "pick_backend", "score_tokens",
    "usable_backends",
]  # fmt: skip

Backend = Literal["chunked", "fused", "reference"]
HAS_TRITON = find_spec("triton") is not None


def linear_cross_entropy(
    h: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (N,), IGNORE where there is none
    *,
    compute_dtype: torch.dtype | None = None,
    backend: Backend | Literal["auto"] = "auto",
) -> Tensor:
    """Sum of nats over all targets, a scalar in float32 or wider.

    `compute_dtype` is the dtype of the matrix products (None: that of `h`); the softmax and the
    sum of the weight's gradient are always float32 or wider.

    Raises:
        BackendError: the backend asked for by name cannot run on these inputs.
    """
    dtype = compute_dtype or h.dtype
    chosen = pick_backend(backend, h.device, dtype)
    with torch.autocast(h.device.type, enabled=False):
        if chosen == "reference":
            logits = at_least_float32(h.to(dtype) @ weight.to(dtype).T)  # (N, V)
            return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        wants = torch.is_grad_enabled()
        return nats_and_gradients(
            h, weight, targets, dtype, wants and h.requires_grad, wants and weight.requires_grad,
            chosen,
        )[0]  # fmt: skip


def pick_backend(requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Settle "auto" for products in `dtype`: `fused` where it can run, else `chunked`.

    Raises:
        BackendError: a backend asked for by name cannot run; it is never swapped.
    """
    if requested in ("chunked", "reference"):
        return requested
    reason = _obstacle(device, dtype)
    if reason is None:
        return "fused"
    if requested == "auto":
        return "chunked"
    raise BackendError(
        f"cross_entropy: backend 'fused' cannot run: {reason}. Backend 'chunked' runs everywhere, "
        "and 'auto' takes the fastest one that fits."
    )


def usable_backends(device: torch.device, dtype: torch.dtype) -> list[Backend]:
    """The backends that can run on such inputs, the one that `auto` means first."""
    return ["chunked"] if _obstacle(device, dtype) else ["fused", "chunked"]


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernels need CUDA"
    if not HAS_TRITON:
        return "the package 'triton' is not installed"
    if dtype == torch.float64:
        return "its kernels compute in float32, and the inputs are float64"
    return None
