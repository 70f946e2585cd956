"""Triton kernels of the work between the products of a prompt; see the package.

Every number is read once, the inputs of the convolution from a near cache once per tap, and
written once. Sums are float32.
Shapes: as in the package.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixlab.ops.gated_delta_rule.l2_norm import EPS
from mixlab.ops.prompt import DeltaInputs, DeltaLayout, Gate
from mixlab.ops.rope import RopeTable

NUMBERS = 4096
"""Of a program, about: enough loads in flight, and few enough for registers."""
GATES: dict[str, int] = {"none": 0, "silu": 1, "sigmoid": 2}


def add_and_norm(stream: Tensor, added: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    n_rows, width = stream.shape
    out = torch.empty(stream.shape, dtype=dtype, device=stream.device)
    block = triton.next_power_of_2(width)
    rows = max(1, NUMBERS // 2 // block)
    _add_and_norm[(triton.cdiv(n_rows, rows),)](
        stream, added, out, n_rows, eps, WIDTH=width, HAS_ADDED=added is not None,
        ROWS=rows, BLOCK=block, num_warps=8 if block > NUMBERS else 4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_rows"])
def _add_and_norm(
    stream, added, out, n_rows, eps,
    WIDTH: tl.constexpr, HAS_ADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    exists = (row < n_rows)[:, None] & (column < WIDTH)
    at = row[:, None] * WIDTH + column
    x = tl.load(stream + at, mask=exists, other=0.0).to(tl.float32)
    if HAS_ADDED:
        x += tl.load(added + at, mask=exists, other=0.0).to(tl.float32)
        tl.store(stream + at, x.to(stream.dtype.element_ty), mask=exists)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    tl.store(out + at, (x * inverse[:, None]).to(out.dtype.element_ty), mask=exists)


def place_heads(
    heads: Tensor, q: Tensor, kv: Tensor, table: RopeTable | None, scale: Tensor | None, eps: float
) -> None:
    n_rows, n_tokens, n_heads, width = heads.shape
    block = max(1, NUMBERS // width)
    cos, sin = table or (None, None)
    _place_heads[(triton.cdiv(n_tokens, block), n_heads, n_rows)](
        heads, q, kv, scale, cos, sin, n_tokens, eps, *heads.stride()[:2], q.stride(0),
        *kv.stride()[:3], H=q.shape[2], G=kv.shape[2], K=width,
        PAIRS=0 if cos is None else cos.shape[-1], NORM=scale is not None, BLOCK=block,
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_tokens"])
def _place_heads(
    heads, q, kv, scale, cos, sin, n_tokens, eps,
    x_batch, x_token, q_batch, kv_part, kv_batch, kv_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr, NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    exists = (t < n_tokens)[:, None]
    channel = tl.arange(0, K)[None, :]
    token = t.to(tl.int64)[:, None]
    x = tl.load(heads + batch * x_batch + token * x_token + head * K + channel, exists, other=0.0)
    y = x.to(tl.float32)
    if head < H + G:
        if NORM:
            inverse = tl.rsqrt(tl.sum(y * y, axis=1) / K + eps)
            y = y * inverse[:, None] * tl.load(scale + head * K + channel).to(tl.float32)
        if PAIRS > 0:
            pair = tl.arange(0, K // 2)[None, :]
            turns = exists & (pair < PAIRS)
            c = tl.load(cos + token * PAIRS + pair, mask=turns, other=1.0)
            s = tl.load(sin + token * PAIRS + pair, mask=turns, other=0.0)
            a, b = tl.split(tl.reshape(y, [BLOCK, K // 2, 2]))
            y = tl.reshape(tl.join(a * c - b * s, b * c + a * s), [BLOCK, K])
    y = y.to(kv.dtype.element_ty)
    if head < H:
        tl.store(q + batch * q_batch + (token * H + head) * K + channel, y, mask=exists)
    else:
        part = (head - H) // G
        at = part.to(tl.int64) * kv_part + batch * kv_batch
        at += ((head - H) % G).to(tl.int64) * kv_head
        tl.store(kv + at + token * K + channel, y, mask=exists)


def delta_inputs(
    x: Tensor, layout: DeltaLayout, taps: Tensor, decay: Tensor | None, dt_bias: Tensor | None,
    b_max: float,
) -> DeltaInputs:  # fmt: skip
    n_rows, n_tokens, _ = x.shape
    place = {"device": x.device, "dtype": x.dtype}
    q, k = (torch.empty(n_rows, n_tokens, layout.n_keys, layout.k_dim, **place) for _ in "qk")
    v = torch.empty(n_rows, n_tokens, layout.n_values, layout.v_dim, **place)
    place["dtype"] = torch.float32
    log_a, b = (torch.empty(n_rows, n_tokens, layout.n_values, **place) for _ in "ab")
    block = max(1, NUMBERS // 2 // max(layout.k_dim, layout.v_dim))
    n_parts = 2 * layout.n_keys + layout.n_values + 1
    _delta_inputs[(triton.cdiv(n_tokens, block), n_parts, n_rows)](
        x, taps, decay, dt_bias, q, k, v, log_a, b, n_tokens, *x.stride()[:2], b_max, EPS,
        G=layout.n_keys, H=layout.n_values, K=layout.k_dim, V=layout.v_dim, B_AT=layout.b,
        A_AT=layout.a or 0, FADES=layout.a is not None, TAPS=len(taps), BLOCK=block,
        BLOCK_H=triton.next_power_of_2(layout.n_values), num_warps=4,
    )  # fmt: skip
    return DeltaInputs(q, k, v, log_a, b)


@triton.jit
def _convolved(
    x, taps, t, n_tokens, x_token, C: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(BLOCK, WIDTH): the channels from `x` on, summed over their taps and through SiLU."""
    channel = tl.arange(0, WIDTH)[None, :]
    y = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
    for lag in tl.static_range(TAPS):
        token = (t - lag)[:, None]
        is_seen = (token >= 0) & (token < n_tokens)
        seen = tl.load(x + token.to(tl.int64) * x_token + channel, mask=is_seen, other=0.0)
        y += seen.to(tl.float32) * tl.load(taps + (TAPS - 1 - lag) * C + channel)
    return y * tl.sigmoid(y)


@triton.jit
def _write_key(
    x, taps, q, k, part, t, row, n_tokens, x_token, eps,
    G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y = _convolved(x + part * K, taps + part * K, t, n_tokens, x_token, C, K, TAPS, BLOCK)
    y = (y * tl.rsqrt(tl.sum(y * y, axis=1) + eps)[:, None]).to(q.dtype.element_ty)
    at = (row * G + part // 2) * K + tl.arange(0, K)[None, :]
    exists = (t < n_tokens)[:, None]
    tl.store(q + at, y, mask=exists & (part % 2 == 0))
    tl.store(k + at, y, mask=exists & (part % 2 == 1))


@triton.jit
def _write_value(
    x, taps, v, head, t, row, n_tokens, x_token,
    H: tl.constexpr, V: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = C - H * V + head * V
    y = _convolved(x + start, taps + start, t, n_tokens, x_token, C, V, TAPS, BLOCK)
    at = (row * H + head) * V + tl.arange(0, V)[None, :]
    tl.store(v + at, y.to(v.dtype.element_ty), mask=(t < n_tokens)[:, None])


@triton.jit
def _write_gates(
    x, decay, dt_bias, log_a, b, t, row, n_tokens, x_token, b_max,
    H: tl.constexpr, B_AT: tl.constexpr, A_AT: tl.constexpr, FADES: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, BLOCK_H)[None, :]
    is_head = head < H
    exists = (t < n_tokens)[:, None] & is_head
    source = x + t.to(tl.int64)[:, None] * x_token + head
    step = tl.load(source + B_AT, mask=exists, other=0.0).to(tl.float32)
    tl.store(b + row * H + head, b_max * tl.sigmoid(step), mask=exists)
    log = tl.zeros([BLOCK, BLOCK_H], dtype=tl.float32)
    if FADES:
        dt = tl.load(source + A_AT, mask=exists, other=0.0).to(tl.float32)
        dt += tl.load(dt_bias + head, mask=is_head, other=0.0).to(tl.float32)
        log = _softplus(dt) * tl.load(decay + head, mask=is_head, other=0.0).to(tl.float32)
    tl.store(log_a + row * H + head, log, mask=exists)


@triton.jit(do_not_specialize=["n_tokens"])
def _delta_inputs(
    x, taps, decay, dt_bias, q, k, v, log_a, b, n_tokens, x_batch, x_token, b_max, eps,
    G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, B_AT: tl.constexpr,
    A_AT: tl.constexpr, FADES: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program takes a query, a key, a value or the gates of all heads, for a few tokens."""
    C: tl.constexpr = 2 * G * K + H * V
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = (batch * n_tokens + t)[:, None]
    x += batch * x_batch
    if part < 2 * G:
        _write_key(x, taps, q, k, part, t, row, n_tokens, x_token, eps, G, K, C, TAPS, BLOCK)
    elif part < 2 * G + H:
        head = part - 2 * G
        _write_value(x, taps, v, head, t, row, n_tokens, x_token, H, V, C, TAPS, BLOCK)
    else:
        _write_gates(
            x, decay, dt_bias, log_a, b, t, row, n_tokens, x_token, b_max, H, B_AT, A_AT, FADES,
            BLOCK, BLOCK_H,
        )  # fmt: skip


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), exact where exp(x) is lost beside 1."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    log = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x > 20.0, x, log)


def gate(x: Tensor, by: Tensor | None, kind: Gate, eps: float | None) -> Tensor:
    n_tokens, n_heads, width = x.shape
    out = torch.empty(n_tokens, n_heads * width, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    rows, n_rows = max(1, NUMBERS // 2 // block), n_tokens * n_heads
    _gate[(triton.cdiv(n_rows, rows),)](
        x, by, out, n_rows, eps or 0.0, 0 if by is None else by.stride(0),
        H=n_heads, V=width, NORM=eps is not None, KIND=GATES["none" if by is None else kind],
        ROWS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_rows"])
def _gate(
    x, by, out, n_rows, eps, by_token,
    H: tl.constexpr, V: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows are heads of tokens; a program takes ROWS of them."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)[None, :]
    exists = (row < n_rows)[:, None] & (channel < V)
    at = row[:, None] * V + channel
    y = tl.load(x + at, mask=exists, other=0.0).to(tl.float32)
    if NORM:
        y = y * tl.rsqrt(tl.sum(y * y, axis=1) / V + eps)[:, None]
    if KIND > 0:
        place = (row // H * by_token + row % H * V)[:, None] + channel
        z = tl.load(by + place, mask=exists, other=0.0).to(tl.float32)
        opened = tl.sigmoid(z)
        if KIND == 1:
            opened = opened * z
        y = y * opened
    tl.store(out + at, y.to(out.dtype.element_ty), mask=exists)
