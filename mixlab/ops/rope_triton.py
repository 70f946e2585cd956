"""Rotary embedding as one Triton kernel: every number is read once and written once.

For calls that need no gradient, such as reading a prompt; torch.compile makes its own kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096
"""Of a program, about: enough loads in flight, and few enough for registers."""


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """(B, T, H, K) by the angles (T, R / 2) or (B, T, R / 2), as `rope.apply_rope`."""
    n_batch, n_tokens, n_heads, width = x.shape
    n_pairs = cos.shape[-1]
    if x.stride(-1) != 1:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_pairs = triton.next_power_of_2(n_pairs)
    block_rest = triton.next_power_of_2(max(1, width - 2 * n_pairs))
    block = max(1, triton.next_power_of_2(NUMBERS // (2 * block_pairs + block_rest)))
    n_rows = n_batch * n_tokens * n_heads
    with torch.cuda.device_of(x):
        _turn_kernel[(triton.cdiv(n_rows, block),)](
            x, cos, sin, y, n_rows, n_tokens, n_heads, *x.stride()[:3],
            WIDTH=width, PAIRS=n_pairs, PER_ROW=cos.dim() == 3, INTERLEAVED=interleaved,
            BLOCK=block, BLOCK_PAIRS=block_pairs, BLOCK_REST=block_rest,
        )  # fmt: skip
    return y


@triton.jit
def _turn_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, n_rows, n_tokens, n_heads, x_batch, x_token, x_head,
    WIDTH: tl.constexpr, PAIRS: tl.constexpr, PER_ROW: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Rows are heads of tokens of sequences; a program takes BLOCK of them."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < n_rows
    head, place = row % n_heads, row // n_heads
    token, batch = place % n_tokens, place // n_tokens
    x_row = x_ptr + (batch * x_batch + token * x_token + head * x_head)[:, None]
    y_row = y_ptr + (row * WIDTH)[:, None]
    pair = tl.arange(0, BLOCK_PAIRS)[None, :]
    is_pair = is_row[:, None] & (pair < PAIRS)
    angle = (token * PAIRS)[:, None] + pair
    if PER_ROW:
        angle += (batch * n_tokens * PAIRS)[:, None]
    cos = tl.load(cos_ptr + angle, mask=is_pair, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=is_pair, other=0.0)
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    a = tl.load(x_row + first, mask=is_pair, other=0.0).to(tl.float32)
    b = tl.load(x_row + second, mask=is_pair, other=0.0).to(tl.float32)
    tl.store(y_row + first, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=is_pair)
    tl.store(y_row + second, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=is_pair)
    if WIDTH > 2 * PAIRS:
        rest = 2 * PAIRS + tl.arange(0, BLOCK_REST)[None, :]
        is_rest = is_row[:, None] & (rest < WIDTH)
        tl.store(y_row + rest, tl.load(x_row + rest, mask=is_rest), mask=is_rest)
