"""Triton kernels of the gated delta rule: gradients of a chunk's inputs, all chunks at once.

Where the states, their gradients and that of x come from, and the notation, is in `triton_kernels`.
"""

import triton
import triton.language as tl

from mixlab.ops.gated_delta_rule.triton_kernels import chunk_rows


@triton.jit
def delta_score_gradients(
    v, b, g, writes, do, dx, dp, da, dv, db, cu_seqlens, chunk_indices, scale,
    H: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of the two kinds of scores (M, H, C), of v (M, H, V), and b's part through b v.

    dp is of q k^T and da of b k k^T, with the factors of P and A on them.
    """
    i_chunk, i_h = tl.program_id(0), tl.program_id(1)
    start, m, _ = chunk_rows(cu_seqlens, chunk_indices, i_chunk, C)
    lane, c = start.to(tl.int64) * H + i_h, tl.arange(0, C)
    b_b = tl.load(b + lane + c * H, mask=m, other=0.0)
    b_g = tl.load(g + lane + c * H, mask=m, other=0.0)
    at_v = c[:, None] * (H * V) + tl.arange(0, BV)[None, :]
    b_dp = tl.zeros([C, C], dtype=tl.float32)
    b_da = tl.zeros([C, C], dtype=tl.float32)
    b_db = tl.zeros([C], dtype=tl.float32)
    for i_v in range(0, V, BV):
        at = lane * V + i_v + at_v
        b_w = tl.load(writes + at, mask=m[:, None], other=0.0)
        b_do = tl.load(do + at, mask=m[:, None], other=0.0)
        b_dx = tl.load(dx + at, mask=m[:, None], other=0.0)
        b_v = tl.load(v + at, mask=m[:, None], other=0.0)
        b_dp = tl.dot(b_do, tl.trans(b_w), b_dp)
        b_da = tl.dot(b_dx, tl.trans(b_w), b_da)
        b_db += tl.sum(b_dx.to(tl.float32) * b_v.to(tl.float32), axis=1)
        tl.store(dv + at, (b_dx * b_b[:, None]).to(dv.dtype.element_ty), mask=m[:, None])
    decay = tl.exp2(tl.minimum(b_g[:, None] - b_g[None, :], 0.0))
    b_dp = tl.where((c[:, None] >= c[None, :]) & m[:, None], b_dp * decay * scale, 0.0)
    b_da = tl.where((c[:, None] > c[None, :]) & m[:, None], b_da * decay * -1.0, 0.0)
    at = lane * C + c[:, None] * (H * C) + c[None, :]
    tl.store(dp + at, b_dp.to(dp.dtype.element_ty), mask=m[:, None])
    tl.store(da + at, b_da.to(da.dtype.element_ty), mask=m[:, None])
    tl.store(db + lane + c * H, b_db, mask=m)


@triton.jit
def delta_key_gradients(
    q, k, b, g, states, dstates, writes, do, dx, dp, da, dq, dk, dg, db,
    cu_seqlens, chunk_indices, scale, M,
    G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of q and k per value head (M, H, K); of g and b in parts (K / BK, M, H).

    A program takes BK columns of one chunk and head.
    """
    i_k, i_chunk = tl.program_id(0) % (K // BK), tl.program_id(0) // (K // BK)
    i_h = tl.program_id(1)
    start, m, last = chunk_rows(cu_seqlens, chunk_indices, i_chunk, C)
    row = start.to(tl.int64)
    lane = row * H + i_h
    i_g = i_h // (H // G)
    c, o_k = tl.arange(0, C), i_k * BK + tl.arange(0, BK)
    chunk = (i_chunk.to(tl.int64) * H + i_h) * K * V
    at_v = c[:, None] * (H * V) + tl.arange(0, BV)[None, :]
    at_state = o_k[:, None] * V + tl.arange(0, BV)[None, :]
    b_dq = tl.zeros([C, BK], dtype=tl.float32)
    b_dr = tl.zeros([C, BK], dtype=tl.float32)
    b_dk = tl.zeros([C, BK], dtype=tl.float32)
    through = tl.zeros([BK], dtype=tl.float32)
    for i_v in range(0, V, BV):
        at = lane * V + i_v + at_v
        b_s = tl.load(states + chunk + i_v + at_state)
        b_ds = tl.load(dstates + chunk + i_v + at_state)
        b_do = tl.load(do + at, mask=m[:, None], other=0.0)
        b_dx = tl.load(dx + at, mask=m[:, None], other=0.0)
        b_w = tl.load(writes + at, mask=m[:, None], other=0.0)
        through += tl.sum(b_s.to(tl.float32) * b_ds.to(tl.float32), axis=1)
        b_dq = tl.dot(b_do, tl.trans(b_s), b_dq)
        b_dr = tl.dot(b_dx, tl.trans(b_s), b_dr)
        b_dk = tl.dot(b_w, tl.trans(b_ds), b_dk)
    b_b = tl.load(b + lane + c * H, mask=m, other=0.0)
    b_g = tl.load(g + lane + c * H, mask=m, other=0.0)
    g_last = tl.load(g + lane + last * H)
    at_k = (row * G + i_g) * K + c[:, None] * (G * K) + o_k[None, :]
    b_q = tl.load(q + at_k, mask=m[:, None], other=0.0)
    b_k = tl.load(k + at_k, mask=m[:, None], other=0.0)
    at_c = lane * C + c[:, None] * (H * C) + c[None, :]
    b_dp = tl.load(dp + at_c, mask=m[:, None], other=0.0)
    b_da = tl.load(da + at_c, mask=m[:, None], other=0.0)
    decay = tl.exp2(b_g)
    b_dq = tl.dot(b_dp, b_k, b_dq * (decay * scale)[:, None])
    b_dr = tl.dot(b_da, b_k, b_dr * -decay[:, None])  # of b k where it reads
    b_dk = b_dk * tl.where(m, tl.exp2(g_last - b_g), 0.0)[:, None]
    wide_q, wide_k = b_q.to(tl.float32), b_k.to(tl.float32)
    dlast = tl.sum(through) * tl.exp2(g_last) + tl.sum(tl.sum(b_dk * wide_k, axis=1))
    b_dk = tl.dot(tl.trans(b_dp), b_q, b_dk)
    b_dk = tl.dot(tl.trans(b_da), (wide_k * b_b[:, None]).to(b_k.dtype), b_dk)
    b_db = tl.sum(b_dr * wide_k, axis=1)
    b_dg = b_db * b_b + tl.sum(b_dq * wide_q, axis=1) - tl.sum(b_dk * wide_k, axis=1)
    b_dg = tl.where(c == last, b_dg + dlast, b_dg)
    at = lane * K + c[:, None] * (H * K) + o_k[None, :]
    tl.store(dq + at, b_dq.to(dq.dtype.element_ty), mask=m[:, None])
    tl.store(dk + at, (b_dk + b_dr * b_b[:, None]).to(dk.dtype.element_ty), mask=m[:, None])
    part = i_k.to(tl.int64) * M * H + lane + c * H
    tl.store(dg + part, b_dg, mask=m)
    tl.store(db + part, b_db, mask=m)


@triton.jit
def delta_sum_parts(
    dg, db, db_v, dlog_a, db_all, cu_seqlens, chunk_indices, M,
    H: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds up the parts of db and of dg; dg is then summed from each token to its chunk's end."""
    i_chunk, i_h = tl.program_id(0), tl.program_id(1)
    start, m, _ = chunk_rows(cu_seqlens, chunk_indices, i_chunk, C)
    at = start.to(tl.int64) * H + i_h + tl.arange(0, C) * H
    b_dg = tl.zeros([C], dtype=tl.float32)
    b_db = tl.load(db_v + at, mask=m, other=0.0)
    for i in tl.static_range(PARTS):
        b_dg += tl.load(dg + i * M * H + at, mask=m, other=0.0)
        b_db += tl.load(db + i * M * H + at, mask=m, other=0.0)
    tl.store(dlog_a + at, tl.cumsum(b_dg, axis=0, reverse=True), mask=m)
    tl.store(db_all + at, b_db, mask=m)
