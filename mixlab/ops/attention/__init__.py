"""Causal softmax attention with grouped heads, windows and packed documents.

    o_t = sum_s softmax_s(scale * q_t . k_s) v_s   over the keys s that t may see

Source: Vaswani et al. [arXiv:1706.03762]; grouped heads: Ainslie et al. [arXiv:2305.13245].
Cost:   O(T * S) time.
Shapes: B batch, T queries, S keys (T <= S, queries are the last T positions), H query heads,
        G key-value heads (H a multiple of G), K query/key width, V value width of a head.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.core.errors import BackendError
from mixlab.ops.attention.kernels import flash_obstacle, run_flash
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.packing import Packing, causal_mask

Backend = Literal["auto", "sdpa", "flash", "reference"]
"""`sdpa` is PyTorch's fused attention, with a mask where one is needed; `flash` is FlashAttention
with document offsets, on a GPU; `reference` is the definition. `auto` is settled by the inputs, see
`pick_backend`."""

_HALF = (torch.bfloat16, torch.float16)


def attention(
    *,
    q: Tensor,  # (B, T, H, K)
    k: Tensor,  # (B, S, G, K)
    v: Tensor,  # (B, S, G, V)
    scale: float,
    window: int | None = None,
    packing: Packing | None = None,
    backend: Backend = "auto",
    preferred: Sequence[str] = (),
    causal: bool = True,
) -> Tensor:
    """(B, T, H, V): every query looks at itself and at earlier keys of its own document.

    `window` limits it to the last `window` keys, itself included. `packing` needs T == S.
    Where `auto` is asked for, and backends are `preferred`, others are left to `sdpa`.
    With `causal=False` every query looks at every key, later ones too; that takes neither.

    Raises:
        BackendError: the named backend cannot run on these inputs.
    """
    assert packing is None or q.shape[1] == k.shape[1], "packed rows are never continued"
    if window is not None and window >= k.shape[1]:
        window = None  # it limits nothing
    if causal:
        if backend == "auto" and preferred and "flash" not in preferred:
            backend = "sdpa"
        backend = pick_backend(backend, q, k, v, window, packing)
        if backend == "flash":
            return run_flash(q, k, v, scale, window, packing)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T or S, width)
    if not causal:
        assert window is None and packing is None, "whole rows have neither window nor documents"
        return _whole(q, k, v, scale, backend).transpose(1, 2)
    run = _reference if backend == "reference" else _sdpa
    return run(q, k, v, scale, window, packing).transpose(1, 2)


def pick_backend(
    requested: str, q: Tensor, k: Tensor, v: Tensor, window: int | None, packing: Packing | None
) -> Backend:
    """Settle "auto" for these inputs, and refuse what cannot run.

    "auto" is `flash` for packed rows and for windows on a GPU in half precision, where it fits. All
    else is `sdpa`, which on a recent GPU is cuDNN's kernel for rows of one document. A backend
    asked for by name is that one or an error.

    Raises:
        BackendError: `requested` cannot run on such inputs; the message says why.
    """
    if requested in ("sdpa", "reference"):
        return requested
    if requested == "auto" and packing is None and window is None:
        return "sdpa"
    if q.shape[1] != k.shape[1]:
        reason = "the queries continue earlier tokens"
    else:
        reason = flash_obstacle(
            q.device, q.dtype, k_dim=k.shape[-1], v_dim=v.shape[-1],
            has_prefix=packing is not None and packing.prefix is not None,
        )  # fmt: skip
    if reason is None:
        return "flash"
    if requested == "auto":
        return "sdpa"
    raise BackendError(
        f"attention: backend {requested!r} cannot run: {reason}. backend 'sdpa' runs everywhere, "
        "and 'auto' takes the fastest one that fits."
    )


def usable_backends(
    device: torch.device, dtype: torch.dtype, *, k_dim: int, v_dim: int
) -> list[Backend]:
    """The backends that can run on packed rows of such heads, the one that `auto` means first."""
    able = flash_obstacle(device, dtype, k_dim=k_dim, v_dim=v_dim, has_prefix=False) is None
    return ["flash", "sdpa"] if able else ["sdpa"]


def _whole(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: Backend) -> Tensor:
    """Attention from every query to every key."""
    n_groups = q.shape[1] // k.shape[1]
    if n_groups > 1:
        k, v = k.repeat_interleave(n_groups, dim=1), v.repeat_interleave(n_groups, dim=1)
    if backend != "reference" and not (q.device.type == "cpu" and q.dtype in _HALF):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if (
        backend != "reference"
    ):  # the CPU's fused kernel goes back 4 to 10 times slower in half precision
        scores = at_least_float32(q @ (scale * k).transpose(-1, -2))  # (B, H, T, S)
        return scores.softmax(dim=-1).to(v.dtype) @ v
    scores = scale * at_least_float32(q) @ at_least_float32(k).transpose(-1, -2)  # (B, H, T, S)
    return (scores.softmax(dim=-1) @ at_least_float32(v)).to(v.dtype)


def _mask(q: Tensor, k: Tensor, window: int | None, packing: Packing | None) -> Tensor:
    if packing is not None:
        return packing.mask(window)
    return causal_mask(q.shape[-2], k.shape[-2], window, q.device)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, packing: Packing | None
) -> Tensor:
    """The definition, in float32 or wider: what every other backend is held to."""
    n_groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_groups, dim=1), v.repeat_interleave(n_groups, dim=1)
    scores = scale * at_least_float32(q) @ at_least_float32(k).transpose(-1, -2)  # (B, H, T, S)
    scores = scores.masked_fill(~_mask(q, k, window, packing), -torch.inf)
    return (scores.softmax(dim=-1) @ at_least_float32(v)).to(v.dtype)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, packing: Packing | None
) -> Tensor:
    """PyTorch's fused kernels; without a mask tensor where plain causality is meant."""
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    mask: Tensor | None = None
    if packing is not None or window is not None or 1 < n_queries < n_keys:
        mask = _mask(q, k, window, packing)
    n_groups = q.shape[1] // k.shape[1]
    if n_groups > 1:  # CPU kernels have no grouped form; expanding costs less than falling back
        k, v = k.repeat_interleave(n_groups, dim=1), v.repeat_interleave(n_groups, dim=1)
    is_causal = mask is None and n_queries > 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)
