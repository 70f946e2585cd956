"""Short depthwise convolution over time that looks back only, and never into another document.

    y_t = act(sum_j weight[:, W - 1 - j] * x_{t - j}),  j = 0 .. W - 1

Ours:   `shift` sums W shifted products, in pieces that stay in a processor's cache, and makes them
        again for the backward pass; a library's general depthwise convolution is slower on a CPU.
Cost:   O(T * C * W); nothing but the input is saved for backward.
Shapes: B batch, T tokens, C channels, W taps.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.packing import Packing

Backend = Literal["shift", "reference"]
CPU_NUMBERS = 2**17
"""Numbers of the input worked on at once on a CPU: 512 KB in float32."""


class ConvOutput(NamedTuple):
    y: Tensor  # (B, T, C), dtype of `x`
    tail: Tensor  # (B, W - 1, C), the last inputs: what the next call continues from


def causal_conv(
    *,
    x: Tensor,  # (B, T, C)
    weight: Tensor,  # (C, W); the last tap is that of the current token
    tail: Tensor | None = None,  # (B, W - 1, C), the inputs before x; None: none, counted as zero
    packing: Packing | None = None,
    silu: bool = True,
    backend: Backend = "shift",
) -> ConvOutput:
    """Convolve each channel with its own taps; with `silu`, pass the sum through SiLU.

    Taps that would reach into another document of a packed row read zero. Packed rows are never
    continued, so `packing` excludes a tail.
    """
    assert tail is None or packing is None, "packed rows are never continued"
    n_batch, n_tokens, n_channels = x.shape
    n_before = weight.shape[1] - 1
    if tail is None:
        tail = x.new_zeros(n_batch, n_before, n_channels)
    reach = None if packing is None else packing.position_in_document()  # (B, T)
    run = _reference if backend == "reference" else _Shift.apply
    y = run(x, weight, tail.to(x.dtype), reach, silu)
    # A copy: a view would keep all of x alive for as long as the state is.
    if n_tokens >= n_before:
        new_tail = x[:, n_tokens - n_before :].clone()
    else:
        new_tail = torch.cat([tail[:, n_tokens:].to(x.dtype), x], dim=1)
    return ConvOutput(y, new_tail)


def _reference(x: Tensor, weight: Tensor, tail: Tensor, reach: Tensor | None, silu: bool) -> Tensor:
    """The definition, tap by tap."""
    wide, n_taps, n_tokens = at_least_float32(x), weight.shape[1], x.shape[1]
    padded = torch.cat([at_least_float32(tail), wide], dim=1)  # (B, W - 1 + T, C)
    y = torch.zeros_like(wide)
    for lag in range(n_taps):
        start = n_taps - 1 - lag
        seen = padded[:, start : start + n_tokens]
        if reach is not None:
            seen = torch.where((reach >= lag)[..., None], seen, 0.0)
        y = y + seen * at_least_float32(weight[:, start])
    return (F.silu(y) if silu else y).to(x.dtype)


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, tail: Tensor, reach: Tensor | None, silu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, tail, reach)
        ctx.silu = silu
        taps = at_least_float32(weight).T.contiguous()  # (W, C)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, tokens in _pieces(x):
            windows = _windows(x, tail, reach, len(taps), rows, tokens)
            total = _weighted(windows, taps)
            y[rows, tokens] = F.silu(total, inplace=True) if silu else total
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, tail, reach = ctx.saved_tensors
        taps = at_least_float32(weight).T.contiguous()
        n_taps, n_before = len(taps), len(taps) - 1
        dweight = torch.zeros_like(taps)
        # One tensor for the gradients of tail and x, since taps of early tokens reach the tail.
        dpadded = x.new_zeros(x.shape[0], n_before + x.shape[1], x.shape[2], dtype=taps.dtype)
        for rows, tokens in _pieces(x):
            windows = _windows(x, tail, reach, n_taps, rows, tokens)
            dtotal = at_least_float32(dy[rows, tokens])
            if ctx.silu:
                dtotal = torch.ops.aten.silu_backward(dtotal, _weighted(windows, taps))
            for lag, window in enumerate(windows):
                tap = n_before - lag
                dweight[tap] += (dtotal * window).sum((0, 1))
                back = dtotal
                if reach is not None and lag:
                    back = dtotal * (reach[rows, tokens] >= lag)[..., None]
                into = slice(tokens.start + tap, tokens.stop + tap)
                dpadded[rows, into].addcmul_(back, taps[tap])
        dpadded = dpadded.to(x.dtype)
        dweight = dweight.T.to(weight.dtype)
        return dpadded[:, n_before:], dweight, dpadded[:, :n_before], None, None


def _pieces(x: Tensor) -> list[tuple[slice, slice]]:
    """Rows and tokens to work on at a time: all at once, except on a CPU."""
    n_batch, n_tokens, n_channels = x.shape
    if x.device.type != "cpu":
        return [(slice(0, n_batch), slice(0, n_tokens))]
    step = max(8, CPU_NUMBERS // n_channels)
    row_step = max(1, CPU_NUMBERS // (n_tokens * n_channels))
    return [
        (slice(row, min(row + row_step, n_batch)), slice(start, min(start + step, n_tokens)))
        for row in range(0, n_batch, row_step)
        for start in range(0, n_tokens, step)
    ]


def _windows(
    x: Tensor, tail: Tensor, reach: Tensor | None, n_taps: int, rows: slice, tokens: slice
) -> list[Tensor]:
    """The piece of x shifted by 0 to W - 1 tokens; zero where a shift leaves the document."""
    first = tokens.start - (n_taps - 1)
    padded = x[rows, max(0, first) : tokens.stop]
    if first < 0:
        padded = torch.cat([tail[rows, tail.shape[1] + first :], padded], dim=1)
    padded = at_least_float32(padded)
    n_tokens = tokens.stop - tokens.start
    windows = [padded[:, n_taps - 1 - lag : n_taps - 1 - lag + n_tokens] for lag in range(n_taps)]
    if reach is not None:
        here = reach[rows, tokens, None]
        windows[1:] = [torch.where(here >= lag, windows[lag], 0.0) for lag in range(1, n_taps)]
    return windows


def _weighted(windows: list[Tensor], taps: Tensor) -> Tensor:
    total = windows[0] * taps[-1]
    for lag in range(1, len(windows)):
        total.addcmul_(windows[lag], taps[-1 - lag])
    return total
