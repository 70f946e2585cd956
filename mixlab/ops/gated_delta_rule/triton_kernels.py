"""Triton kernels of the gated delta rule, made for wide heads.

The matrix form and its gradient are those of `chunked`, so nothing of the (I + A)^-1 k and v of
the usual kernels is stored, and the gradient through the inverse is a product of what is there
already. Per chunk of C tokens, with S the state before it and G the running sum of log a:

    x = b v - exp(G) b k S        w = (I + A)^-1 x        o = exp(G) q S + P w
    S' = exp(G_C) S + (exp(G_C - G) k)^T w,    P = the causal part of q k^T exp(G_t - G_s)

Cost:   Products of C x K x V per chunk and head: three forward, eight backward. The largest tensors
        that go through memory are the states and their gradients, K * V / C numbers per token and
        head, once out and once in.
Ours:   A transposed factor is always one that was loaded: Triton before 3.7.1 compiles products
        with a transposed result of another product wrongly on Hopper. Scans read tiles by tensor
        descriptors, which spares the registers that addresses need; the state takes the rest.
Shapes: M tokens of all rows, G key heads, H value heads, K key width, V value width, C = 64 tokens
        of a chunk, N documents; a program takes BV of V or BK of K columns. Descriptors are of
        tensors as matrices, heads side by side: (M, G * K), (M, H * V), (M, H * C), and states
        below each other, (n_chunks * H * K, V).
Units:  g is in powers of two.

A descriptor reads past the end of a document, into the next one. What comes from there is finite,
and is multiplied by a zero of the step sizes or decays, which are read with a mask, or not stored.
"""

import triton
import triton.language as tl


@triton.jit
def chunk_rows(cu_seqlens, chunk_indices, i_chunk, C: tl.constexpr):
    """The first row of a chunk, (C,) which of its tokens exist, and the last that does."""
    i_n = tl.load(chunk_indices + i_chunk * 2)
    i_t = tl.load(chunk_indices + i_chunk * 2 + 1)
    start = tl.load(cu_seqlens + i_n) + i_t * C
    end = tl.minimum(tl.load(cu_seqlens + i_n + 1), start + C)
    return start, tl.arange(0, C) < end - start, end - start - 1


@triton.jit
def _inverse(a, C: tl.constexpr, D: tl.constexpr):
    """(I + a)^-1 of a strictly lower triangular a (C, C), float32.

    Blocks of D on the diagonal by substitution, row by row; what is below them by a product, as
    I + a = (I + blocks) (I + l) with l of C / D = 4 block rows, so that l^4 = 0.
    """
    N: tl.constexpr = C // D
    n, d = tl.arange(0, N), tl.arange(0, D)
    on = n[:, None, None, None] == n[None, None, :, None]
    blocks = tl.sum(tl.where(on, tl.reshape(a, [N, D, N, D]), 0.0), axis=2)  # (N, D, D)
    inverse = -blocks
    for i in tl.static_range(2, D):
        here = d[None, :, None] == i
        line = tl.sum(tl.where(here, -blocks, 0.0), axis=1)  # (N, D), a row of each block
        line += tl.sum(line[:, :, None] * inverse, axis=1)
        inverse = tl.where(here, line[:, None, :], inverse)
    inverse += tl.where(d[None, :, None] == d[None, None, :], 1.0, 0.0)
    wide = tl.where(on, inverse[:, :, None, :], 0.0)
    wide = tl.reshape(wide, [C, C])
    c = tl.arange(0, C)
    below = tl.where(c[:, None] // D > c[None, :] // D, a, 0.0)
    low = tl.dot(wide, below, input_precision="tf32")
    square = tl.dot(low, low, input_precision="tf32")
    series = square - low - tl.dot(low, square, input_precision="tf32")
    return tl.dot(series, wide, wide, input_precision="tf32")


@triton.jit
def delta_prepare(
    q, k, log_a, b, g, inverse, p, cu_seqlens, chunk_indices, scale,
    G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """g (M, H), the rows of (I + A)^-1 and P (M, H, C); a program a chunk and head."""
    i_chunk, i_h = tl.program_id(0), tl.program_id(1)
    start, m, _ = chunk_rows(cu_seqlens, chunk_indices, i_chunk, C)
    row = start.to(tl.int64)
    lane, c = row * H + i_h, tl.arange(0, C)
    i_g = i_h // (H // G)
    # exp(-88) is next to nothing; much larger sums would lose the small ones among them.
    log = tl.maximum(tl.load(log_a + lane + c * H, mask=m, other=0.0), -88.0)
    b_g = tl.cumsum(log, axis=0) * 1.4426950408889634  # in powers of two
    b_b = tl.load(b + lane + c * H, mask=m, other=0.0)
    tl.store(g + lane + c * H, b_g, mask=m)
    at = c[:, None] * (G * K) + tl.arange(0, BK)[None, :]
    keys = tl.zeros([C, C], dtype=tl.float32)
    reads = tl.zeros([C, C], dtype=tl.float32)
    for i_k in range(0, K, BK):
        key = (row * G + i_g) * K + i_k
        b_q = tl.load(q + key + at, mask=m[:, None], other=0.0)
        b_k = tl.load(k + key + at, mask=m[:, None], other=0.0)
        keys = tl.dot(b_k, tl.trans(b_k), keys)
        reads = tl.dot(b_q, tl.trans(b_k), reads)
    decay = tl.exp2(tl.minimum(b_g[:, None] - b_g[None, :], 0.0))
    reads = tl.where((c[:, None] >= c[None, :]) & m[:, None], reads * decay * scale, 0.0)
    keys = tl.where((c[:, None] > c[None, :]) & m[:, None], keys * decay * b_b[:, None], 0.0)
    at = lane * C + c[:, None] * (H * C) + c[None, :]
    tl.store(p + at, reads.to(p.dtype.element_ty), mask=m[:, None])
    tl.store(inverse + at, _inverse(keys, C, 16).to(inverse.dtype.element_ty), mask=m[:, None])


@triton.jit
def delta_scan_states(
    q, k, v, b, g, inverse, p, first, o, final, states, writes,
    cu_seqlens, chunk_offsets, scale,
    G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BV: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_FINAL: tl.constexpr, READS: tl.constexpr,
):  # fmt: skip
    """From a document's first chunk to its last; a program takes BV columns of the state.

    With READS, the outputs o (M, H, V); without, the states before every chunk (n_chunks, H, K, V)
    and w (M, H, V), which the backward pass needs. q, k, v, inverse, p and states are descriptors.
    """
    i_v, i_nh = tl.program_id(0) % (V // BV), tl.program_id(0) // (V // BV)
    i_n, i_h = i_nh // H, i_nh % H
    i_g = i_h // (H // G)
    bos, eos = tl.load(cu_seqlens + i_n), tl.load(cu_seqlens + i_n + 1)
    chunk = tl.load(chunk_offsets + i_n)
    c, o_k, o_v = tl.arange(0, C), tl.arange(0, K), i_v * BV + tl.arange(0, BV)
    at_state = i_nh.to(tl.int64) * K * V + o_k[:, None] * V + o_v[None, :]
    at_v = c[:, None] * (H * V) + o_v[None, :]
    if HAS_FIRST:
        s = tl.load(first + at_state).to(tl.float32)
    else:
        s = tl.zeros([K, BV], dtype=tl.float32)
    for i_t in range(tl.cdiv(eos - bos, C)):
        start = bos + i_t * C
        m = c < eos - start
        lane = start.to(tl.int64) * H + i_h  # where the chunk of this head begins
        last = lane + (tl.minimum(C, eos - start) - 1) * H
        b_k = k.load([start, i_g * K])
        b_v = v.load([start, i_h * V + i_v * BV])
        b_inverse = inverse.load([start, i_h * C])
        b_b = tl.load(b + lane + c * H, mask=m, other=0.0)
        b_g = tl.load(g + lane + c * H, mask=m, other=0.0)
        g_last = tl.load(g + last)
        low = s.to(b_k.dtype)
        if not READS:
            states.store([((chunk + i_t) * H + i_h) * K, i_v * BV], low)
        decay = tl.exp2(b_g)
        x = b_v * b_b[:, None] - tl.dot(b_k, low) * (b_b * decay)[:, None]
        w = tl.dot(b_inverse, x.to(b_k.dtype))
        if READS:
            b_q = q.load([start, i_g * K])
            b_p = p.load([start, i_h * C])
            out = tl.dot(b_q, low) * (decay * scale)[:, None]
            out = tl.dot(b_p, w.to(b_p.dtype), out)
            tl.store(o + lane * V + at_v, out.to(o.dtype.element_ty), mask=m[:, None])
        else:
            tl.store(writes + lane * V + at_v, w.to(writes.dtype.element_ty), mask=m[:, None])
        w = w * tl.where(m, tl.exp2(g_last - b_g), 0.0)[:, None]
        s = tl.dot(tl.trans(b_k), w.to(b_k.dtype), s * tl.exp2(g_last))
    if HAS_FINAL:
        tl.store(final + at_state, s)


@triton.jit
def delta_scan_gradients(
    q, k, b, g, inverse, p, do, dfinal, dfirst, dstates, dx,
    cu_seqlens, chunk_offsets, scale,
    G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BV: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_FINAL: tl.constexpr,
):  # fmt: skip
    """From a document's last chunk to its first; a program takes BV columns of the state.

    Stores the gradients of the state after every chunk (n_chunks, H, K, V) and of x (M, H, V).
    q, k, inverse, p, do and dstates are descriptors.
    """
    i_v, i_nh = tl.program_id(0) % (V // BV), tl.program_id(0) // (V // BV)
    i_n, i_h = i_nh // H, i_nh % H
    i_g = i_h // (H // G)
    bos, eos = tl.load(cu_seqlens + i_n), tl.load(cu_seqlens + i_n + 1)
    chunk = tl.load(chunk_offsets + i_n)
    n_chunks = tl.cdiv(eos - bos, C)
    c, o_k, o_v = tl.arange(0, C), tl.arange(0, K), i_v * BV + tl.arange(0, BV)
    at_state = i_nh.to(tl.int64) * K * V + o_k[:, None] * V + o_v[None, :]
    at_v = c[:, None] * (H * V) + o_v[None, :]
    if HAS_FINAL:
        ds = tl.load(dfinal + at_state).to(tl.float32)
    else:
        ds = tl.zeros([K, BV], dtype=tl.float32)
    for back in range(n_chunks):
        i_t = n_chunks - 1 - back
        start = bos + i_t * C
        m = c < eos - start
        lane = start.to(tl.int64) * H + i_h  # where the chunk of this head begins
        last = lane + (tl.minimum(C, eos - start) - 1) * H
        b_k = k.load([start, i_g * K])
        b_do = tl.where(m[:, None], do.load([start, i_h * V + i_v * BV]), 0.0)
        b_inverse = inverse.load([start, i_h * C])
        b_p = p.load([start, i_h * C])
        b_b = tl.load(b + lane + c * H, mask=m, other=0.0)
        b_g = tl.load(g + lane + c * H, mask=m, other=0.0)
        g_last = tl.load(g + last)
        low = ds.to(b_k.dtype)
        dstates.store([((chunk + i_t) * H + i_h) * K, i_v * BV], low)
        decay = tl.exp2(b_g)
        dw = tl.dot(b_k, low) * tl.where(m, tl.exp2(g_last - b_g), 0.0)[:, None]
        dw = tl.dot(tl.trans(b_p), b_do, dw)
        b_dx = tl.dot(tl.trans(b_inverse), dw.to(b_k.dtype))
        tl.store(dx + lane * V + at_v, b_dx.to(dx.dtype.element_ty), mask=m[:, None])
        b_q = q.load([start, i_g * K])  # as late as this, it can have the memory that `low` had
        read = b_do * (decay * scale)[:, None]
        ds = tl.dot(tl.trans(b_q), read.to(b_k.dtype), ds * tl.exp2(g_last))
        erased = b_dx * (b_b * decay)[:, None] * -1.0
        ds = tl.dot(tl.trans(b_k), erased.to(b_k.dtype), ds)
    if HAS_FIRST:
        tl.store(dfirst + at_state, ds)
