"""Triton kernels of attention within short rows: one program holds all keys of a row and head.

Queries and keys are turned as they are read, straight from the joined projection, so nothing but
that and the output ever passes through memory: 4 numbers per position and channel forwards, 7
backwards, where the softmax is worked out anew.
Shapes: B rows, T positions, H heads, K width of a head, half of K at a time.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_Q = 64
"""Queries at a time: what a group of four warps multiplies at once."""


@triton.jit
def _angles(cosines, sines, positions, T, HALF: tl.constexpr, TURNS: tl.constexpr):
    """Cosines and sines (positions, K / 2), or nothing to turn by."""
    if TURNS:
        place = positions[:, None] * HALF + tl.arange(0, HALF)[None, :]
        is_row = (positions < T)[:, None]
        cos = tl.load(cosines + place, mask=is_row, other=0.0)
        sin = tl.load(sines + place, mask=is_row, other=0.0)
        return cos.to(tl.float32), sin.to(tl.float32)
    else:
        return 0.0, 0.0


@triton.jit
def _read_turned(start, positions, T, cos, sin, STRIDE, HALF: tl.constexpr, TURNS: tl.constexpr):
    """Both halves (positions, K / 2) of queries or keys, turned."""
    is_row = (positions < T)[:, None]
    place = positions[:, None] * STRIDE + tl.arange(0, HALF)[None, :]
    a = tl.load(start + place, mask=is_row, other=0.0)
    b = tl.load(start + HALF + place, mask=is_row, other=0.0)
    if TURNS:
        x, y = a.to(tl.float32), b.to(tl.float32)
        return (x * cos - y * sin).to(a.dtype), (y * cos + x * sin).to(b.dtype)
    else:
        return a, b


@triton.jit
def _write_turned_back(
    start, positions, T, da, db, cos, sin, STRIDE, HALF: tl.constexpr, TURNS: tl.constexpr
):
    """Store the gradients of what was read, from those of what was turned."""
    is_row = (positions < T)[:, None]
    place = positions[:, None] * STRIDE + tl.arange(0, HALF)[None, :]
    if TURNS:
        x, y = da * cos + db * sin, db * cos - da * sin
    else:
        x, y = da, db
    tl.store(start + place, x.to(start.dtype.element_ty), mask=is_row)
    tl.store(start + HALF + place, y.to(start.dtype.element_ty), mask=is_row)


@triton.jit
def _read(start, positions, T, STRIDE, WIDTH: tl.constexpr):
    """(positions, WIDTH) as they are."""
    place = positions[:, None] * STRIDE + tl.arange(0, WIDTH)[None, :]
    return tl.load(start + place, mask=(positions < T)[:, None], other=0.0)


@triton.jit
def _write(start, positions, T, x, STRIDE, WIDTH: tl.constexpr):
    """The opposite of `_read`."""
    place = positions[:, None] * STRIDE + tl.arange(0, WIDTH)[None, :]
    tl.store(start + place, x.to(start.dtype.element_ty), mask=(positions < T)[:, None])


@triton.jit
def _probabilities(qa, qb, ka, kb, is_key, scale_log2):
    """Softmax over the keys as numerators (queries, keys) in float32, and 1 / denominator."""
    s = tl.dot(qa, tl.trans(ka))
    s = tl.dot(qb, tl.trans(kb), s)
    s = tl.where(is_key[None, :], s, -float("inf"))
    p = tl.exp2((s - tl.max(s, 1)[:, None]) * scale_log2)
    return p, 1.0 / tl.sum(p, 1)


@triton.jit
def row_attention_forward(
    qkv,  # (B, T, 3, H, K)
    cosines,  # (T, K / 2) float32
    sines,
    out,  # (B, T, H, K)
    scale_log2,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    HALF: tl.constexpr = K // 2
    STRIDE: tl.constexpr = 3 * H * K
    q_start = qkv + row * T * STRIDE + head * K
    keys = tl.arange(0, BLOCK_T)
    k_cos, k_sin = _angles(cosines, sines, keys, T, HALF, TURNS)
    ka, kb = _read_turned(q_start + H * K, keys, T, k_cos, k_sin, STRIDE, HALF, TURNS)
    v = _read(q_start + 2 * H * K, keys, T, STRIDE, K)
    for start in tl.range(0, T, BLOCK_Q, num_stages=1):
        queries = start + tl.arange(0, BLOCK_Q)
        cos, sin = _angles(cosines, sines, queries, T, HALF, TURNS)
        qa, qb = _read_turned(q_start, queries, T, cos, sin, STRIDE, HALF, TURNS)
        p, inverse = _probabilities(qa, qb, ka, kb, keys < T, scale_log2)
        o = tl.dot(p.to(v.dtype), v) * inverse[:, None]
        _write(out + (row * T * H + head) * K, queries, T, o, H * K, K)


@triton.jit
def row_attention_backward(
    qkv,  # (B, T, 3, H, K)
    cosines,  # (T, K / 2) float32
    sines,
    d_out,  # (B, T, H, K)
    d_qkv,  # (B, T, 3, H, K)
    scale,
    scale_log2,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    HALF: tl.constexpr = K // 2
    STRIDE: tl.constexpr = 3 * H * K
    q_start = qkv + row * T * STRIDE + head * K
    dq_start = d_qkv + row * T * STRIDE + head * K
    rows = tl.arange(0, BLOCK_T)
    cos, sin = _angles(cosines, sines, rows, T, HALF, TURNS)
    ka, kb = _read_turned(q_start + H * K, rows, T, cos, sin, STRIDE, HALF, TURNS)
    qa, qb = _read_turned(q_start, rows, T, cos, sin, STRIDE, HALF, TURNS)
    v = _read(q_start + 2 * H * K, rows, T, STRIDE, K)
    d_o = _read(d_out + (row * T * H + head) * K, rows, T, H * K, K)
    p, inverse = _probabilities(qa, qb, ka, kb, rows < T, scale_log2)
    p = (p * inverse[:, None]).to(v.dtype)
    dv = tl.dot(tl.trans(p), d_o)
    _write(dq_start + 2 * H * K, rows, T, dv, STRIDE, K)
    dp = tl.dot(d_o, tl.trans(v))
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(v.dtype)
    cos, sin = _angles(cosines, sines, rows, T, HALF, TURNS)
    dqa, dqb = tl.dot(ds, ka), tl.dot(ds, kb)
    _write_turned_back(dq_start, rows, T, dqa, dqb, cos, sin, STRIDE, HALF, TURNS)
    ds = tl.trans(ds)
    dka, dkb = tl.dot(ds, qa), tl.dot(ds, qb)
    _write_turned_back(dq_start + H * K, rows, T, dka, dkb, cos, sin, STRIDE, HALF, TURNS)


def run_forward(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float) -> Tensor:
    """(B, T, H, K) of (B, T, 3, H, K); see `row_attention`."""
    n, length, _, n_heads, width = qkv.shape
    out = qkv.new_empty(n, length, n_heads, width)
    row_attention_forward[(n * n_heads,)](
        qkv, cos, sin, out, scale * math.log2(math.e),
        **(shape := _shape(qkv, cos)), BLOCK_Q=min(BLOCK_Q, shape["BLOCK_T"]), num_warps=4,
    )  # fmt: skip
    return out


def run_backward(
    qkv: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float, d_out: Tensor
) -> Tensor:
    """(B, T, 3, H, K), the gradient of qkv."""
    n, _, _, n_heads, width = qkv.shape
    d_qkv = torch.empty_like(qkv)
    row_attention_backward[(n * n_heads,)](
        qkv, cos, sin, d_out, d_qkv, scale, scale * math.log2(math.e),
        **_shape(qkv, cos), num_warps=4 if width <= 64 else 8,  # what the registers hold
    )  # fmt: skip
    return d_qkv


def _shape(qkv: Tensor, cos: Tensor | None) -> dict[str, int | bool]:
    """What the kernels are compiled for."""
    block = max(16, triton.next_power_of_2(qkv.shape[1]))
    return {
        "T": qkv.shape[1], "H": qkv.shape[3], "K": qkv.shape[4], "TURNS": cos is not None,
        "BLOCK_T": block,
    }  # fmt: skip
