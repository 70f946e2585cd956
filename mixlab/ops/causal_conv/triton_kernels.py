"""The short convolution as Triton kernels at the floor of memory: each tensor is moved once.

A program owns a block of channels and walks along a segment of one row, with the last inputs in
registers, and in backward with the gradients that are not complete yet. What a segment needs of
its neighbours, W - 1 tokens on either side, is read twice. All sums are float32. A segment leaves
its part of the taps' gradient, and the parts are added in one order: runs repeat exactly.
"""

# ruff: noqa: RUF005  (Triton knows no starred tuples)

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiling(NamedTuple):
    """How a kernel cuts the work; found by measurement on an H200."""

    channels: int  # of a program
    warps: int
    tokens: int  # of a segment
    ahead: int  # tokens read at once


FORWARD = Tiling(channels=256, warps=2, tokens=64, ahead=4)
BACKWARD = Tiling(channels=128, warps=2, tokens=128, ahead=4)
PARTS = 3
"""Outputs that one launch serves."""


def forward(
    x: Tensor, weight: Tensor, tail: Tensor | None, reach: Tensor | None, silu: bool,
    widths: list[int],
) -> list[Tensor]:  # fmt: skip
    """See operator.convolve."""
    if tail is not None:  # only a text that is gone on with has one: a copy costs little there
        parts = forward(torch.cat([tail, x], dim=1), weight, None, reach, silu, widths)
        return [part[:, tail.shape[1] :].contiguous() for part in parts]
    x, weight = _rows(x), weight.contiguous()
    reach = None if reach is None else reach.contiguous()
    n_batch, n_tokens, _ = x.shape
    parts = [x.new_empty(n_batch, n_tokens, width) for width in widths]
    for start, group, grid in _launches(parts, FORWARD):
        with _on(x):
            _causal_conv_forward[grid](
                x, weight, reach, *_padded(group), start, *_widths(group),
                n_tokens, *x.stride()[:2],
                N_TAPS=weight.shape[1], SILU=silu, IS_PACKED=reach is not None,
                TOKENS=FORWARD.tokens, AHEAD=FORWARD.ahead, BLOCK=_block(group, FORWARD),
                num_warps=FORWARD.warps,
            )  # fmt: skip
    return parts


def backward(
    dys: list[Tensor], x: Tensor, weight: Tensor, tail: Tensor | None, reach: Tensor | None,
    silu: bool,
) -> list[Tensor]:  # fmt: skip
    """See operator.convolve_backward."""
    if tail is not None:
        n_before = tail.shape[1]
        dys = [torch.cat([dy.new_zeros(*tail.shape[:2], dy.shape[2]), dy], dim=1) for dy in dys]
        dx, dweight = backward(dys, torch.cat([tail, x], dim=1), weight, None, reach, silu)
        return [dx[:, n_before:].clone(), dweight, dx[:, :n_before].clone()]
    x, taps, dys = _rows(x), weight.contiguous(), [dy.contiguous() for dy in dys]
    reach = None if reach is None else reach.contiguous()
    (n_batch, n_tokens, n_channels), n_taps = x.shape, weight.shape[1]
    dx = x.new_empty(x.shape)
    n_segments = triton.cdiv(n_tokens, BACKWARD.tokens)
    dtaps = x.new_empty(n_batch * n_segments, n_taps, n_channels, dtype=torch.float32)
    for start, group, grid in _launches(dys, BACKWARD):
        with _on(x):
            _causal_conv_backward[grid](
                x, taps, reach, *_padded(group), dx, dtaps, start, *_widths(group),
                n_tokens, n_channels, *x.stride()[:2],
                N_TAPS=n_taps, SILU=silu, IS_PACKED=reach is not None,
                TOKENS=BACKWARD.tokens, AHEAD=BACKWARD.ahead, BLOCK=_block(group, BACKWARD),
                num_warps=BACKWARD.warps,
            )  # fmt: skip
    return [dx, dtaps.sum(0).T.to(weight.dtype).contiguous()]


def _rows(x: Tensor) -> Tensor:
    """With channels side by side, which is all that the kernels ask for."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _launches(
    parts: list[Tensor], tiling: Tiling
) -> Iterator[tuple[int, list[Tensor], tuple[int, int, int]]]:
    """First channel, parts and grid of every launch."""
    start = 0
    for first in range(0, len(parts), PARTS):
        group = parts[first : first + PARTS]
        n_batch, n_tokens, _ = group[0].shape
        block = _block(group, tiling)
        n_blocks = sum(triton.cdiv(part.shape[2], block) for part in group)
        yield start, group, (n_blocks, triton.cdiv(n_tokens, tiling.tokens), n_batch)
        start += sum(part.shape[2] for part in group)


def _block(group: list[Tensor], tiling: Tiling) -> int:
    widest = max(part.shape[2] for part in group)
    return min(tiling.channels, triton.next_power_of_2(widest))


def _padded(group: list[Tensor]) -> list[Tensor]:
    return group + group[:1] * (PARTS - len(group))


def _widths(group: list[Tensor]) -> list[int]:
    return [part.shape[2] for part in group] + [0] * (PARTS - len(group))


def _on(x: Tensor) -> torch.cuda.device:
    """Kernels run on the current device; a tensor may lie on another (-1: none, as in tests)."""
    return torch.cuda.device(x.device.index if x.is_cuda else -1)


@triton.jit
def _place(block, a_ptr, b_ptr, c_ptr, a_width, b_width, c_width, BLOCK: tl.constexpr):
    """The part that a block of channels is of: pointer, width, channels before it and in it."""
    a_blocks, b_blocks = tl.cdiv(a_width, BLOCK), tl.cdiv(b_width, BLOCK)
    is_a, is_b = block < a_blocks, block < a_blocks + b_blocks
    ptr = tl.where(is_a, a_ptr, tl.where(is_b, b_ptr, c_ptr))
    width = tl.where(is_a, a_width, tl.where(is_b, b_width, c_width))
    before = tl.where(is_a, 0, tl.where(is_b, a_width, a_width + b_width))
    block -= tl.where(is_a, 0, tl.where(is_b, a_blocks, a_blocks + b_blocks))
    return ptr, width, before, block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _causal_conv_forward(
    x_ptr, taps_ptr, reach_ptr, a_ptr, b_ptr, c_ptr,
    start, a_width, b_width, c_width, n_tokens, x_row, x_token,
    N_TAPS: tl.constexpr, SILU: tl.constexpr, IS_PACKED: tl.constexpr,
    TOKENS: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y_ptr, width, before, c = _place(
        tl.program_id(0), a_ptr, b_ptr, c_ptr, a_width, b_width, c_width, BLOCK
    )
    is_channel = c < width
    x_ptr += start + before
    taps_ptr += (start + before) * N_TAPS
    first = tl.program_id(1) * TOKENS
    row = tl.program_id(2).to(tl.int64)
    x_ptr += row * x_row + c
    y_ptr += row * n_tokens * width + c
    reach_ptr = reach_ptr + row * n_tokens if IS_PACKED else reach_ptr

    taps, window = (), ()  # taps by lag; the inputs before token `first`, latest first
    for lag in tl.static_range(N_TAPS):
        tap = tl.load(taps_ptr + c * N_TAPS + N_TAPS - 1 - lag, mask=is_channel, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    for i in tl.static_range(N_TAPS - 1):
        t = first - (N_TAPS - 1) + i
        here = tl.load(x_ptr + t.to(tl.int64) * x_token, mask=is_channel & (t >= 0), other=0.0)
        window = (here.to(tl.float32),) + window

    for offset in range(0, TOKENS, AHEAD):
        begin, ahead, reaches = first + offset, (), ()
        for i in tl.static_range(AHEAD):
            t = begin + i
            at = x_ptr + t.to(tl.int64) * x_token
            ahead = ahead + (tl.load(at, mask=is_channel & (t < n_tokens), other=0.0),)
            if IS_PACKED:
                reaches = reaches + (tl.load(reach_ptr + t, t < n_tokens, other=0),)
        for i in tl.static_range(AHEAD):
            t = begin + i
            window = (ahead[i].to(tl.float32),) + window
            y = window[0] * taps[0]
            for lag in tl.static_range(1, N_TAPS):
                seen = tl.where(reaches[i] >= lag, window[lag], 0.0) if IS_PACKED else window[lag]
                y += seen * taps[lag]
            if SILU:
                y = y * tl.sigmoid(y)
            at = y_ptr + t.to(tl.int64) * width
            tl.store(at, y.to(y_ptr.dtype.element_ty), mask=is_channel & (t < n_tokens))
            window = window[0 : N_TAPS - 1]


@triton.jit
def _causal_conv_backward(
    x_ptr, taps_ptr, reach_ptr, a_ptr, b_ptr, c_ptr, dx_ptr, dtaps_ptr,
    start, a_width, b_width, c_width, n_tokens, n_channels, x_row, x_token,
    N_TAPS: tl.constexpr, SILU: tl.constexpr, IS_PACKED: tl.constexpr,
    TOKENS: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dy_ptr, width, before, c = _place(
        tl.program_id(0), a_ptr, b_ptr, c_ptr, a_width, b_width, c_width, BLOCK
    )
    is_channel = c < width
    x_ptr += start + before
    dx_ptr += start + before
    taps_ptr += (start + before) * N_TAPS
    dtaps_ptr += start + before
    first = tl.program_id(1) * TOKENS
    last = min(first + TOKENS, n_tokens)  # behind the segment
    row = tl.program_id(2).to(tl.int64)
    x_ptr += row * x_row + c
    dy_ptr += row * n_tokens * width + c
    dx_ptr += row * n_tokens * n_channels + c
    reach_ptr = reach_ptr + row * n_tokens if IS_PACKED else reach_ptr

    taps, window = (), ()
    open_dx, dtaps = (), ()  # of tokens t - 1, t - 2, ...: what later tokens still add to
    for lag in tl.static_range(N_TAPS):
        tap = tl.load(taps_ptr + c * N_TAPS + N_TAPS - 1 - lag, mask=is_channel, other=0.0)
        taps = taps + (tap.to(tl.float32),)
        dtaps = dtaps + (tl.zeros((BLOCK,), tl.float32),)
    for i in tl.static_range(N_TAPS - 1):
        t = first - (N_TAPS - 1) + i
        here = tl.load(x_ptr + t.to(tl.int64) * x_token, mask=is_channel & (t >= 0), other=0.0)
        window = (here.to(tl.float32),) + window
        open_dx = open_dx + (tl.zeros((BLOCK,), tl.float32),)

    # Past the end of the segment, up to W - 1 tokens more look back into it.
    for offset in range(0, TOKENS + N_TAPS - 1, AHEAD):
        begin, ahead, dys, reaches = first + offset, (), (), ()
        for i in tl.static_range(AHEAD):
            t = begin + i
            is_read = is_channel & (t < n_tokens)
            ahead = ahead + (tl.load(x_ptr + t.to(tl.int64) * x_token, is_read, other=0.0),)
            dys = dys + (tl.load(dy_ptr + t.to(tl.int64) * width, is_read, other=0.0),)
            if IS_PACKED:
                reaches = reaches + (tl.load(reach_ptr + t, t < n_tokens, other=0),)
        for i in tl.static_range(AHEAD):
            t = begin + i
            window = (ahead[i].to(tl.float32),) + window
            seen = (window[0],)
            for lag in tl.static_range(1, N_TAPS):
                if IS_PACKED:
                    seen = seen + (tl.where(reaches[i] >= lag, window[lag], 0.0),)
                else:
                    seen = seen + (window[lag],)
            dtotal = dys[i].to(tl.float32)
            if SILU:
                total = seen[0] * taps[0]
                for lag in tl.static_range(1, N_TAPS):
                    total += seen[lag] * taps[lag]
                gate = tl.sigmoid(total)
                dtotal = dtotal * gate * (1 + total * (1 - gate))
            dtotal = tl.where(t < n_tokens, dtotal, 0.0)
            own = tl.where(t < last, dtotal, 0.0)  # each token counts in one segment only
            new_dtaps, new_open = (), (dtotal * taps[0],)
            for lag in tl.static_range(N_TAPS):
                new_dtaps = new_dtaps + (dtaps[lag] + own * seen[lag],)
            for lag in tl.static_range(1, N_TAPS):
                back = tl.where(reaches[i] >= lag, dtotal, 0.0) if IS_PACKED else dtotal
                new_open = new_open + (open_dx[lag - 1] + back * taps[lag],)
            done = t - (N_TAPS - 1)
            is_own = is_channel & (done >= first) & (done < last)
            at = dx_ptr + done.to(tl.int64) * n_channels
            tl.store(at, new_open[N_TAPS - 1].to(dx_ptr.dtype.element_ty), mask=is_own)
            dtaps, open_dx = new_dtaps, new_open[0 : N_TAPS - 1]
            window = window[0 : N_TAPS - 1]

    segment = row * tl.num_programs(1) + tl.program_id(1)
    for lag in tl.static_range(N_TAPS):
        at = dtaps_ptr + (segment * N_TAPS + N_TAPS - 1 - lag) * n_channels + c
        tl.store(at, dtaps[lag], mask=is_channel)
