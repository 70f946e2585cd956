"""The short convolution as W shifted products in plain PyTorch, for any device and dtype.

A library's general depthwise convolution is slower on a CPU. On it, the work goes piece by piece,
so that what is made on the way stays in the processor's cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32

CPU_NUMBERS = 2**17
"""Numbers of the input worked on at once on a CPU: 512 KB in float32."""


def forward(
    x: Tensor, weight: Tensor, tail: Tensor | None, reach: Tensor | None, silu: bool,
    widths: list[int],
) -> list[Tensor]:  # fmt: skip
    """See operator.convolve."""
    taps = at_least_float32(weight).T.contiguous()  # (W, C)
    parts = [x.new_empty(*x.shape[:2], width) for width in widths]
    for rows, tokens in _pieces(x):
        windows = _windows(x, tail, reach, len(taps), rows, tokens)
        total = _weighted(windows, taps)
        total = F.silu(total, inplace=True) if silu else total
        for part, piece in zip(parts, total.split(widths, dim=-1), strict=True):
            part[rows, tokens] = piece
    return parts


def backward(
    dys: list[Tensor], x: Tensor, weight: Tensor, tail: Tensor | None, reach: Tensor | None,
    silu: bool,
) -> list[Tensor]:  # fmt: skip
    """See operator.convolve_backward."""
    taps = at_least_float32(weight).T.contiguous()
    n_taps, n_before = len(taps), len(taps) - 1
    dweight = torch.zeros_like(taps)
    dx = x.new_zeros(x.shape, dtype=taps.dtype)
    dtail = None if tail is None else tail.new_zeros(tail.shape, dtype=taps.dtype)
    for rows, tokens in _pieces(x):
        windows = _windows(x, tail, reach, n_taps, rows, tokens)
        pieces = [dy[rows, tokens] for dy in dys]
        dtotal = at_least_float32(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1))
        if silu:
            dtotal = torch.ops.aten.silu_backward(dtotal, _weighted(windows, taps))
        for lag, window in enumerate(windows):
            tap = n_before - lag
            dweight[tap] += (dtotal * window).sum((0, 1))
            back = dtotal
            if reach is not None and lag:
                back = dtotal * (reach[rows, tokens, None] >= lag)
            # Taps of early tokens reach before x, into the tail.
            n_out = min(max(0, lag - tokens.start), back.shape[1])
            if dtail is not None and n_out:
                first = tokens.start + tap
                dtail[rows, first : first + n_out].addcmul_(back[:, :n_out], taps[tap])
            into = slice(tokens.start - lag + n_out, tokens.stop - lag)
            if n_out < back.shape[1]:
                dx[rows, into].addcmul_(back[:, n_out:], taps[tap])
    found = [dx.to(x.dtype), dweight.T.to(weight.dtype).contiguous()]
    return found if dtail is None else [*found, dtail.to(tail.dtype)]


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
    x: Tensor, tail: Tensor | None, reach: Tensor | None, n_taps: int, rows: slice, tokens: slice
) -> list[Tensor]:
    """The piece of x shifted by 0 to W - 1 tokens; zero where a shift leaves the document."""
    first = tokens.start - (n_taps - 1)
    padded = x[rows, max(0, first) : tokens.stop]
    if first < 0:
        if tail is None:
            before = padded.new_zeros(padded.shape[0], -first, padded.shape[2])
        else:
            before = tail[rows, tail.shape[1] + first :]
        padded = torch.cat([before, padded], dim=1)
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
