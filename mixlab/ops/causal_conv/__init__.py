"""Short depthwise convolution over time that looks back only, and never into another document.

    y_t = act(sum_j weight[:, W - 1 - j] * x_{t - j}),  j = 0 .. W - 1

Ours:   `shift` sums W shifted products in plain PyTorch, in pieces that stay in a processor's
        cache; `triton` reads and writes every tensor once on a GPU. Both make the sums again for
        the backward pass. Several outputs of given widths, so that queries, keys and values come
        out as tensors of their own and nobody has to copy them apart.
Cost:   O(T * C * W); nothing but the input is saved for backward.
Shapes: B batch, T tokens, C channels, W taps.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixlab.core.errors import BackendError
from mixlab.ops.causal_conv.operator import convolve
from mixlab.ops.causal_conv.reference import run_reference
from mixlab.ops.packing import Packing

Backend = Literal["shift", "triton", "reference"]
MAX_TRITON_TAPS = 8
HAS_TRITON = find_spec("triton") is not None


class ConvOutput(NamedTuple):
    y: Tensor  # (B, T, C), dtype of `x`
    tail: Tensor  # (B, W - 1, C), the last inputs: what the next call continues from


class ConvParts(NamedTuple):
    parts: list[Tensor]  # (B, T, width) each, contiguous
    tail: Tensor  # as in ConvOutput


def causal_conv(
    *,
    x: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, W); the last tap is that of the current token
    tail: Tensor | None = None,  # (B, W - 1, C), the inputs before x; None: none, counted as zero
    packing: Packing | None = None,
    silu: bool = True,
    backend: Backend | Literal["auto"] = "auto",
) -> ConvOutput:
    """Convolve each channel with its own taps; with `silu`, pass the sum through SiLU.

    Taps that would reach into another document of a packed row read zero. Packed rows are never
    continued, so `packing` excludes a tail.

    Raises:
        BackendError: the backend asked for by name cannot run on these inputs.
    """
    (y,), new_tail = causal_conv_parts(
        x=x, weight=weight, widths=(x.shape[-1],), tail=tail, packing=packing, silu=silu,
        backend=backend,
    )  # fmt: skip
    return ConvOutput(y, new_tail)


def causal_conv_parts(
    *,
    x: Tensor,
    weight: Tensor,
    widths: Sequence[int],
    tail: Tensor | None = None,
    packing: Packing | None = None,
    silu: bool = True,
    backend: Backend | Literal["auto"] = "auto",
    preferred: Sequence[str] = (),
) -> ConvParts:
    """As `causal_conv`, its channels handed out in contiguous tensors of the given widths.

    Where `auto` is asked for, backends that are `preferred` go before others.
    """
    assert tail is None or packing is None, "packed rows are never continued"
    assert sum(widths) == x.shape[-1], "the widths must add up to the channels"
    n_before = weight.shape[1] - 1
    chosen = pick_backend(backend, x.device, x.dtype, weight.shape[1], preferred)
    reach = None if packing is None else packing.position
    tail = None if tail is None else tail.to(x.dtype)
    if chosen == "reference":
        parts = list(run_reference(x, weight, tail, reach, silu).split(list(widths), dim=-1))
    else:
        parts = convolve(x, weight, tail, reach, silu, list(widths), chosen)
    # A copy: a view would keep all of x alive for as long as the state is.
    if x.shape[1] >= n_before:
        new_tail = x[:, x.shape[1] - n_before :].clone()
    else:
        before = x.new_zeros(x.shape[0], n_before, x.shape[2]) if tail is None else tail
        new_tail = torch.cat([before[:, x.shape[1] :], x], dim=1)
    return ConvParts(parts, new_tail)


def pick_backend(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    n_taps: int,
    preferred: Sequence[str] = (),
) -> Backend:
    """Settle "auto" for inputs of this kind: what is `preferred` and can run, else `triton` where
    it can, else `shift`.

    Raises:
        BackendError: a backend asked for by name cannot run; it is never swapped.
    """
    if requested in ("shift", "reference"):
        return requested
    if requested == "auto":
        usable = usable_backends(device, dtype, n_taps)
        return next((name for name in usable if name in preferred), usable[0])
    reason = _obstacle(device, dtype, n_taps)
    if reason is None:
        return "triton"
    raise BackendError(
        f"causal_conv: backend 'triton' cannot run: {reason}. Backend 'shift' runs everywhere, and "
        "'auto' takes the fastest one that fits."
    )


def usable_backends(device: torch.device, dtype: torch.dtype, n_taps: int) -> list[Backend]:
    """The backends that can run on such inputs, the one that `auto` means first."""
    return ["shift"] if _obstacle(device, dtype, n_taps) else ["triton", "shift"]


def _obstacle(device: torch.device, dtype: torch.dtype, n_taps: int) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernels need CUDA"
    if not HAS_TRITON:
        return "the package 'triton' is not installed"
    if dtype == torch.float64:
        return "its kernels sum in float32, and the inputs are float64"
    if n_taps > MAX_TRITON_TAPS:
        return f"it takes up to {MAX_TRITON_TAPS} taps, and these are {n_taps}"
    return None
