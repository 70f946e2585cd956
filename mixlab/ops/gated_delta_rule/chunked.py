"""Gated delta rule in matrix form: chunks of tokens at once, forward and backward by hand.

Within a chunk of C tokens the rule is a triangular system. With g the running sum of log a,
D[t, s] = exp(g_t - g_s) for s <= t of the same document, and S the state before the chunk:

    A = strictly lower part of (b k) k^T * D        T = (I + A)^-1
    w = T (b v - exp(g) (b k) S)                    what each token writes
    o = exp(g) q S + (q k^T * D) w
    S' = exp(g_C) S + (exp(g_C - g) k)^T w

Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule" [arXiv:2406.06484],
        section 3; the decay as in "Gated Delta Networks" [arXiv:2412.06464], section 3.3.
Ours:   Keys and queries read alike ("reads", rows [b k; q]), so one product serves both. The
        backward is written out: it keeps T, w and S only, makes the rest again, and takes the
        decay's gradient from row sums, since exp(g_t) goes with every read and exp(-g_t) with
        every write of token t. Blocks of chunks are small enough for a processor's cache.
        Documents are separated by zeros in D and in the factors of S, not by strong decay.
Cost:   O(T * (C + K) * V) multiply-adds per head; saved for backward: C + V + K * V / C numbers
        per token and value head, beside the inputs.
Shapes: B batch, T tokens, G key heads, H value heads (R = H / G of them share a key head),
        K query/key width, V value width, C tokens of a chunk, n chunks of a block,
        L = n * B * H lanes of a block, J = n * B * G.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.gated_delta_rule.blocks import Block, Plan, load_block
from mixlab.ops.gated_delta_rule.flops import count_flops
from mixlab.ops.packing import Packing

CPU_TOKENS = 2048
"""Tokens times heads worked on at once on a CPU, where intermediates should stay in the cache."""


def chunk_size(k_dim: int, device: torch.device) -> int:
    """Most tokens of a chunk: on a CPU half the key width balances the two kinds of products."""
    return 32 if device.type == "cpu" and k_dim <= 64 else 64


def run_chunked(
    q: Tensor,  # (B, T, G, K)
    k: Tensor,  # (B, T, G, K)
    v: Tensor,  # (B, T, H, V)
    log_a: Tensor,  # (B, T, H)
    b: Tensor,  # (B, T, H)
    state: Tensor | None,  # (B, H, K, V)
    packing: Packing | None,
    normalize_qk: bool,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the state after the last token, (B, H, K, V).

    `chunk` bounds the tokens of a chunk; None: `chunk_size`.
    """
    n_tokens, out_dtype = q.shape[1], v.dtype
    chunk = chunk or chunk_size(k.shape[-1], k.device)
    # As many chunks as needed, all of nearly one size: little padding, none at even lengths.
    n_chunks = -(-n_tokens // chunk)
    size = -(-n_tokens // n_chunks)
    n_pad = n_chunks * size - n_tokens
    q, k, v, log_a, b = (at_least_float32(x) for x in (q, k, v, log_a, b))
    ids = None if packing is None else packing.ids
    if n_pad:
        # Steps of size zero without decay leave the state as it is.
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, n_pad)) for x in (q, k, v))
        log_a, b = (F.pad(x, (0, 0, 0, n_pad)) for x in (log_a, b))
        ids = None if ids is None else torch.cat([ids, ids[:, -1:].expand(-1, n_pad)], dim=1)
    lanes = CPU_TOKENS // size if q.device.type == "cpu" else 2**30
    plan = Plan(size, n_chunks, normalize_qk, lanes)
    o, state, _ = torch.ops.mixlab.delta_rule_chunked(q, k, v, log_a, b, state, ids, *plan)
    return o[:, :n_tokens].to(out_dtype), state


_PLAN = "SymInt size, SymInt n_chunks, bool normalize_qk, SymInt lanes"


@torch.library.custom_op(
    "mixlab::delta_rule_chunked",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor log_a, Tensor b, Tensor? state, Tensor? ids, "
    f"{_PLAN}) -> (Tensor, Tensor, Tensor[])",
)
def _forward(q, k, v, log_a, b, state, ids, *plan):
    """Outputs, the state after the last token, and T, w and S of block after block."""
    plan = Plan(*plan)
    n_rows, _, n_heads, _ = v.shape
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    final = v.new_empty(n_rows, n_heads, k.shape[-1], v.shape[-1])
    kept = []
    with torch.autocast(v.device.type, enabled=False):
        for rows in plan.row_blocks(n_rows, n_heads):
            some = final[rows].flatten(0, 1)  # (B * H, K, V), a view
            some.zero_() if state is None else some.copy_(state[rows].flatten(0, 1))
            for chunks in plan.chunk_blocks(rows.stop - rows.start, n_heads):
                block = load_block(plan, (q, k, v, log_a, b), ids, rows, chunks)
                kept += _forward_block(plan, block, some, o, rows, chunks)
    return o, final, kept


@_forward.register_fake
def _(q, k, v, log_a, b, state, ids, *plan):
    plan = Plan(*plan)
    (n_rows, _, n_heads, v_dim), k_dim = v.shape, k.shape[-1]
    kept = []
    for rows in plan.row_blocks(n_rows, n_heads):
        lanes = (rows.stop - rows.start) * n_heads
        for chunks in plan.chunk_blocks(rows.stop - rows.start, n_heads):
            n = chunks.stop - chunks.start
            shapes = ((n * lanes, plan.size, plan.size), (n, lanes, plan.size, v_dim))
            kept += [v.new_empty(shape) for shape in (*shapes, (n, lanes, k_dim, v_dim))]
    return v.new_empty(v.shape), v.new_empty(n_rows, n_heads, k_dim, v_dim), kept


@torch.library.custom_op(
    "mixlab::delta_rule_chunked_backward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor log_a, Tensor b, bool has_state, Tensor? ids, "
    f"{_PLAN}, Tensor final, Tensor[] kept, Tensor do, Tensor? dfinal) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(q, k, v, log_a, b, has_state, ids, size, n_chunks, normalize_qk, lanes, *rest):
    """Gradients of q, k, v, log_a, b and of the state before the first token."""
    final, kept, do, dfinal = rest
    inputs, plan = (q, k, v, log_a, b), Plan(size, n_chunks, normalize_qk, lanes)
    kept, (n_rows, _, n_heads, _) = list(kept), v.shape
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    dstate = torch.zeros_like(final) if dfinal is None else dfinal.to(final.dtype).clone()
    with torch.autocast(v.device.type, enabled=False):
        for rows in reversed(plan.row_blocks(n_rows, n_heads)):
            after = final[rows].flatten(0, 1)
            dsome = dstate[rows].flatten(0, 1)
            for chunks in reversed(plan.chunk_blocks(rows.stop - rows.start, n_heads)):
                inverse, writes, states = kept[-3:]
                del kept[-3:]
                block = load_block(plan, inputs, ids, rows, chunks)
                dout = plan.cut(do, rows, chunks)
                found = _backward_block(plan, block, inverse, writes, states, after, dout, dsome)
                for x, whole in zip(found, grads, strict=True):
                    plan.paste(x, whole, rows, chunks)
                after = states[0]
    # A decay with nothing before it has no effect; rounding would leave a trace of one.
    if ids is not None:
        grads[3][:, 1:].masked_fill_((ids[:, 1:] != ids[:, :-1])[..., None], 0.0)
    if not has_state:
        grads[3][:, 0] = 0.0
    return (*grads, dstate)


@_backward.register_fake
def _(q, k, v, log_a, b, has_state, ids, size, n_chunks, normalize_qk, lanes, final, *rest):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, log_a, b, final))


def _keep(ctx, inputs, output) -> None:
    *tensors, state, ids, size, n_chunks, normalize_qk, lanes = inputs
    _, final, kept = output
    ctx.set_materialize_grads(False)
    ctx.plan, ctx.has_state = Plan(size, n_chunks, normalize_qk, lanes), state is not None
    ctx.save_for_backward(*tensors, ids, final, *kept)


def _gradient(ctx, do: Tensor | None, dfinal: Tensor | None, _: list) -> tuple:
    saved = ctx.saved_tensors  # once: activation checkpointing hands it out a single time
    *inputs, ids, final = saved[:7]
    kept = list(saved[7:])
    do = torch.zeros_like(inputs[2]) if do is None else do
    op = torch.ops.mixlab.delta_rule_chunked_backward
    *grads, dstate = op(*inputs, ctx.has_state, ids, *ctx.plan, final, kept, do, dfinal)
    return (*grads, dstate if ctx.has_state else None, None, *(None for _ in ctx.plan))


_forward.register_autograd(_gradient, setup_context=_keep)
count_flops("chunked")


def _forward_block(
    plan: Plan, block: Block, state: Tensor, o: Tensor, rows: slice, chunks: slice
) -> list[Tensor]:
    """Write the block's outputs into `o`, advance `state` (B * H, K, V) in place.

    Returns T (L, C, C), w (n, B * H, C, V) and the states before each chunk (n, B * H, K, V).
    """
    n, (n_lanes, _, size, k_dim) = chunks.stop - chunks.start, block.reads.shape
    scores = torch.bmm(block.reads.view(len(block.k), -1, k_dim), block.k.mT)
    scores = scores.view(n_lanes, 2, size, size).mul_(block.decay[:, None])
    eye = torch.eye(size, dtype=scores.dtype, device=scores.device).expand(n_lanes, -1, -1)
    # Only the part below the diagonal is read, so A needs no masking.
    inverse = torch.linalg.solve_triangular(
        scores[:, 0], eye, upper=False, left=False, unitriangular=True
    )
    reads_in = block.reads * block.decay_in[:, None, :, None]  # (L, 2, C, K)
    wanted = _by_chunk(block.v * block.b[..., None], n)  # then b v - exp(g) (b k) S
    keys_in, k_out, inverse_n = (_by_chunk(x, n) for x in (reads_in[:, 0], block.k_out(), inverse))
    decay_all = block.decay_in[:, -1].view(n, -1, 1, 1)
    states = state.new_empty(n, *state.shape)
    writes = torch.empty_like(wanted)
    for i in range(n):
        states[i] = state
        torch.bmm(inverse_n[i], wanted[i].baddbmm_(keys_in[i], state, alpha=-1), out=writes[i])
        state.mul_(decay_all[i]).baddbmm_(k_out[i].mT, writes[i])
    out = torch.bmm(reads_in[:, 1], states.flatten(0, 1))
    plan.paste(out.baddbmm_(scores[:, 1], writes.flatten(0, 1)), o, rows, chunks)
    return [inverse, writes, states]


def _by_chunk(x: Tensor, n: int) -> Tensor:
    return x.unflatten(0, (n, -1))  # (L, ...) -> (n, B * H, ...)


class _Scan(NamedTuple):
    """What the backward pass through the states of a block finds."""

    dwanted: Tensor  # (L, C, V), gradient of b v - exp(g) (b k) S
    dafter: Tensor  # (L, K, V), gradient of the state after each chunk
    dlast: Tensor  # (L,), gradient of g_C through the state after the chunk


def _scan_backward(
    block: Block, inverse: Tensor, states: Tensor, after: Tensor, dout: Tensor, dstate: Tensor
) -> _Scan:
    """From the last chunk of a block to its first; `dstate` ends as the gradient before it."""
    n, (n_lanes, _, size, _) = len(states), block.reads.shape
    scores = torch.bmm(block.q_rows(), block.k.mT)  # (J, C, C), shared by R lanes
    scores = scores[:, None] * block.decay.view(len(scores), -1, size, size)
    dwrites = _by_chunk(torch.bmm(scores.view(n_lanes, size, size).mT, dout), n)
    reads_in = block.reads * block.decay_in[:, None, :, None]
    dstate_q = _by_chunk(torch.bmm(reads_in[:, 1].mT, dout), n)
    keys_in, k_out, inverse = (_by_chunk(x, n) for x in (reads_in[:, 0], block.k_out(), inverse))
    decay_all = block.decay_in[:, -1].view(n, -1, 1, 1)
    dwanted, dafter = torch.empty_like(dwrites), torch.empty_like(states)
    dlast = dout.new_empty(n, len(dstate))
    for i in reversed(range(n)):
        dafter[i] = dstate
        torch.linalg.vecdot(after.flatten(1), dstate.flatten(1), out=dlast[i])
        after = states[i]
        dwrites[i].baddbmm_(k_out[i], dstate)
        torch.bmm(inverse[i].mT, dwrites[i], out=dwanted[i])
        dstate.mul_(decay_all[i]).add_(dstate_q[i]).baddbmm_(keys_in[i].mT, dwanted[i], alpha=-1)
    return _Scan(*(x.flatten(0, 1) for x in (dwanted, dafter, dlast)))


def _backward_block(
    plan: Plan, block: Block, inverse: Tensor, writes: Tensor, states: Tensor,
    after: Tensor, dout: Tensor, dstate: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the block's q, k, v, log_a, b; turns `dstate` into that before the block.

    `after` is the state after the block, (B * H, K, V); `dout` is (L, C, V).
    """
    (n_lanes, _, size, k_dim), n_keys = block.reads.shape, len(block.k)
    dwanted, dafter, dlast = _scan_backward(block, inverse, states, after, dout, dstate)
    w = writes.flatten(0, 1)

    # Rows [b k; q] read S and w; dread is what comes back through each.
    dread = torch.stack([-dwanted, dout], dim=1).flatten(1, 2)  # (L, 2C, V)
    dscores = torch.bmm(dread, w.mT).view(n_lanes, 2, size, size).mul_(block.decay[:, None])
    dscores[:, 0].diagonal(dim1=-2, dim2=-1).zero_()  # A is strictly lower
    dreads = torch.bmm(dread, states.flatten(0, 1).mT).view(block.reads.shape)
    dreads = dreads.mul_(block.decay_in[:, None, :, None]).view(n_keys, -1, k_dim)
    dreads.baddbmm_(dscores.view(n_keys, -1, size), block.k)
    dreads = dreads.view(block.reads.shape)
    dk = torch.bmm(w, dafter.mT).mul_(block.decay_out)  # (L, C, K), of keys as written
    dk.baddbmm_(dscores.flatten(1, 2).mT, block.reads.flatten(1, 2))

    vecdot, shared = torch.linalg.vecdot, (n_keys, -1, size, k_dim)
    one_k = block.k[:, None]  # (J, 1, C, K)
    db = vecdot(dreads[:, 0].view(shared), one_k).view(n_lanes, size)
    dg = db * block.b + vecdot(dreads[:, 1], block.reads[:, 1])
    dg -= vecdot(dk.view(shared), one_k).view(n_lanes, size)
    dg[:, -1] += dlast
    # log a_r takes part in g_t for t >= r; sums stop at the document's end, so that the rounding
    # errors of one document do not reach another.
    n_apart = n_lanes if block.seen.dim() == 2 else len(block.seen)
    dlog_a = torch.matmul(dg.view(n_apart, -1, size), block.seen).view(n_lanes, size)
    db += vecdot(dwanted, block.v)
    dk = dk.addcmul_(dreads[:, 0], block.b[..., None]).view(shared).sum(1)
    dq = dreads[:, 1].reshape(shared).sum(1).mul_(k_dim**-0.5)
    if block.r_k is not None:
        dk = _norm_backward(dk, block.k, block.r_k)
        dq = _norm_backward(dq, block.q_rows() * k_dim**0.5, block.r_q)
    return dq, dk, dwanted.mul_(block.b[..., None]), dlog_a, db


def _norm_backward(dy: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Gradient of x where y = r x and r is one over the length of x."""
    return torch.addcmul(dy, y, torch.linalg.vecdot(dy, y)[..., None], value=-1).mul_(r)
