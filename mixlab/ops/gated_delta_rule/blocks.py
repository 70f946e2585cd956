"""How the chunked gated delta rule cuts its inputs: blocks of rows and chunks, lanes first.

Shapes: B batch, T tokens, G key heads, H value heads (R = H / G of them share a key head),
        K query/key width, V value width, C tokens of a chunk, n chunks of a block,
        L = n * B * H lanes of a block, J = n * B * G.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.ops.gated_delta_rule.l2_norm import inverse_length

LOG_ZERO = -1000.0
"""Log decays below this are as good as it: exp of it is zero in every dtype."""


class Plan(NamedTuple):
    """How a call is cut into blocks; a block is some rows of the batch and some chunks of them."""

    size: int  # tokens of a chunk
    n_chunks: int
    normalize_qk: bool
    lanes: int  # upper bound of L, unless one chunk of one row has more heads

    def row_blocks(self, n_rows: int, n_heads: int) -> list[slice]:
        step = max(1, min(n_rows, self.lanes // n_heads))
        return [slice(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]

    def chunk_blocks(self, n_rows: int, n_heads: int) -> list[slice]:
        step = max(1, min(self.n_chunks, self.lanes // (n_rows * n_heads)))
        return [slice(i, min(i + step, self.n_chunks)) for i in range(0, self.n_chunks, step)]

    def cut(self, x: Tensor, rows: slice, chunks: slice) -> Tensor:
        """(B, T, heads, ...) -> (n * B * heads, C, ...) of one block, contiguous."""
        x = x[rows, chunks.start * self.size : chunks.stop * self.size]
        x = x.unflatten(1, (-1, self.size)).movedim((1, 3), (0, 2))  # (n, B, heads, C, ...)
        return x.reshape(-1, *x.shape[3:]).contiguous()

    def paste(self, x: Tensor, whole: Tensor, rows: slice, chunks: slice) -> None:
        """The inverse of `cut`: write a block into `whole`."""
        into = whole[rows, chunks.start * self.size : chunks.stop * self.size]
        into = into.unflatten(1, (-1, self.size)).movedim((1, 3), (0, 2))
        into.copy_(x.view(into.shape))


class Block(NamedTuple):
    """What forward and backward both need of a block."""

    k: Tensor  # (J, C, K)
    r_k: Tensor | None  # (J, C, 1), one over the length of k before it was normed
    r_q: Tensor | None
    v: Tensor  # (L, C, V)
    b: Tensor  # (L, C)
    reads: Tensor  # (L, 2, C, K): b k and q / sqrt(K)
    decay: Tensor  # (L, C, C): D
    decay_in: Tensor  # (L, C): from the state before the chunk to each token
    seen: Tensor  # (C, C) or (n * B, C, C), one where s <= t is of the document of t

    @property
    def decay_out(self) -> Tensor:
        """(L, C, 1): from each token to the end of the chunk."""
        return self.decay[:, -1, :, None]

    def k_out(self) -> Tensor:
        """(L, C, K): keys as they stand in the state after the chunk."""
        n_keys, size, _ = self.k.shape
        out = self.k[:, None] * self.decay_out.view(n_keys, -1, size, 1)
        return out.flatten(0, 1)

    def q_rows(self) -> Tensor:
        """(J, C, K): q / sqrt(K), once per key head."""
        return self.reads.unflatten(0, (len(self.k), -1))[:, 0, 1]


def load_block(
    plan: Plan, inputs: tuple[Tensor, ...], ids: Tensor | None, rows: slice, chunks: slice
) -> Block:
    q, k, v, log_a, b = (plan.cut(x, rows, chunks) for x in inputs)
    r_q = r_k = None
    if plan.normalize_qk:
        r_q, r_k = inverse_length(q), inverse_length(k)
        q, k = q * r_q, k * r_k
    n_keys, size, width = k.shape
    n_shared = v.shape[0] // n_keys
    reads = q.new_empty(n_keys, n_shared, 2, size, width)
    torch.mul(k[:, None], b.view(n_keys, n_shared, size, 1), out=reads[:, :, 0])
    torch.mul(q[:, None].expand(-1, n_shared, -1, -1), width**-0.5, out=reads[:, :, 1])
    return Block(k, r_k, r_q, v, b, reads.flatten(0, 1), *_decays(plan, log_a, ids, rows, chunks))


def _decays(
    plan: Plan, log_a: Tensor, ids: Tensor | None, rows: slice, chunks: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """D (L, C, C) and exp(g) (L, C), zero between documents; and which pairs are of one document.

    log_a is (L, C).
    """
    size, dtype = plan.size, log_a.dtype
    seen = torch.ones(size, size, dtype=torch.bool, device=log_a.device).tril()
    # Sums of large logs lose the small ones in float32, so their differences are taken wider.
    wide = torch.float64 if log_a.device.type != "mps" else torch.float32
    log_a = log_a.to(wide).clamp(min=LOG_ZERO)
    carried = None
    if ids is not None:
        here = plan.cut(ids[..., None], rows, chunks)  # (n * B, C)
        before = ids[rows].unflatten(1, (-1, size))[..., -1].roll(1, dims=1)[:, chunks]
        before = before.movedim(1, 0).reshape(-1, 1)  # (n * B, 1), last token before the chunk
        seen = seen & (here[:, :, None] == here[:, None, :])  # (n * B, C, C)
        is_start = here != torch.cat([before, here[:, :-1]], dim=1)
        carried, is_start = (
            x.repeat_interleave(len(log_a) // len(here), dim=0) for x in (here == before, is_start)
        )
        log_a = log_a.masked_fill(is_start, 0.0)  # the decay before a first token decays nothing
    g = log_a.cumsum(-1)  # (L, C)
    decay = (g[:, :, None] - g[:, None, :]).to(dtype)
    # Nothing is differentiated through this exp, so minus infinity is a plain way to a zero.
    hidden = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)
    decay.view(*seen.shape[:-2], -1, size, size).add_(hidden.unsqueeze(-3)).exp_()
    decay_in = g.exp_().to(dtype)
    decay_in = decay_in if carried is None else decay_in * carried
    return decay, decay_in, seen.to(dtype)
