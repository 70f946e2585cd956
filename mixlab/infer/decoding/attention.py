"""Single tokens through softmax attention, with keys and values in a cache that stays in place.

With a window the cache is a ring of that many slots: keys come turned, so their order in it does
not matter. Query heads that share keys are queries of one head, so nothing is repeated for them.
Shapes: B rows, S slots, H query heads, G key-value heads, K head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.rows import Rows, turn
from mixlab.infer.decoding.steps import (
    Projection,
    RowCache,
    SequenceStep,
    Unit,
    fused,
    grown,
    output,
)
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers.attention import Attention, AttentionState
from mixlab.ops.dtypes import at_least_float32


class KeyValueCache(RowCache):
    """Turned keys and values of every row, in slots; a ring where there is a window."""

    def __init__(self, like: Tensor, n_heads: int, width: int, window: int | None) -> None:
        self.window = window
        self.kv = like.new_zeros(2, 0, n_heads, 0, width)  # (2, rows, G, S, K)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        n_slots = n_tokens if self.window is None else min(n_tokens, self.window)
        _, rows, heads, slots, width = self.kv.shape
        if n_rows > rows or n_slots > slots:
            self.kv = grown(self.kv, (2, max(rows, n_rows), heads, max(slots, n_slots), width))

    def put(self, row: int, state: AttentionState) -> None:
        # Nothing of the row's last sequence may stay: a NaN there would outlive its mask.
        self.kv[:, row] = 0
        n_kept = state.k.shape[1]
        slots = torch.arange(state.n_seen - n_kept, state.n_seen, device=state.k.device)
        if self.window is not None:
            slots = slots % self.window
        for place, kept in zip(self.kv[:, row], (state.k, state.v), strict=True):  # (G, S, K)
            place[:, slots] = kept[0].transpose(0, 1).to(place.dtype)

    def move(self, source: int, target: int) -> None:
        self.kv[:, target] = self.kv[:, source]

    def row_bytes(self, n_tokens: int) -> int:
        n_slots = n_tokens if self.window is None else min(n_tokens, self.window)
        return 2 * n_slots * self.kv.shape[2] * self.kv.shape[4] * self.kv.itemsize

    def add(self, kv: Tensor, rows: Rows) -> None:
        """Write (B, 2, G, K), the current tokens' keys and values, to their slots."""
        if rows.position is not None:
            slot = rows.position if self.window is None else rows.position % self.window
            self.kv[:, : len(rows), :, slot] = kv.transpose(0, 1)
            return
        slots = rows.n_seen if self.window is None else rows.n_seen % self.window
        self.kv[:, rows.index, :, slots] = kv

    def read(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, G, S, K) of all slots that any row uses, and the mask over them."""
        n_slots = rows.n_keys if self.window is None else min(rows.n_keys, self.window)
        kept = self.kv[:, : len(rows), :, :n_slots]
        return kept[0], kept[1], rows.mask(n_slots)


class AttentionStep(SequenceStep):
    """The projections as one product, norm and turn of queries and keys together."""

    def __init__(self, mixer: Attention, norm: RMSNorm, dtype: torch.dtype) -> None:
        cfg = self.cfg = mixer.cfg
        parts = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
        parts += [mixer.g_proj] * cfg.output_gate
        self.projection = Projection(norm, *fused(norm, parts), dtype)
        self.output = output(mixer.o_proj, dtype)
        self.empty = norm.weight.detach().new_empty(0, dtype=dtype)
        self.n_qk = cfg.n_heads + cfg.kv_heads
        self.unit: Unit | None = None
        if cfg.qk_norm == "head":
            self.unit = Unit(cfg.head_dim, cfg.norm_eps, norm.weight)
            q, k = (part.weight.detach() for part in (mixer.q_norm, mixer.k_norm))
            scales = [q.expand(cfg.n_heads, -1), k.expand(cfg.kv_heads, -1)]
            self.qk_scale = torch.cat(scales)  # (H + G, K)
        self.full_norms = [mixer.q_norm, mixer.k_norm] if cfg.qk_norm == "full" else []

    @staticmethod
    def fits(mixer: Attention) -> bool:
        """Not the definition, which a config asks for by name."""
        return mixer.cfg.backend != "reference" and mixer.causal

    def new_cache(self) -> KeyValueCache:
        cfg = self.cfg
        return KeyValueCache(self.empty, cfg.kv_heads, cfg.head_dim, cfg.window)

    def __call__(self, x: Tensor, cache: KeyValueCache, rows: Rows) -> Tensor:
        cfg, n_rows = self.cfg, len(rows)
        heads = self.projection(x).view(n_rows, -1, cfg.head_dim)  # (B, H + 2G or 2H + 2G, K)
        qk = heads[:, : self.n_qk]
        wide = at_least_float32(x[:0]).dtype
        if self.unit is not None:
            qk.copy_(self.unit(at_least_float32(qk)) * self.qk_scale)
        for part, head in zip(
            self.full_norms, qk.split([cfg.n_heads, cfg.kv_heads], 1), strict=False
        ):
            head.copy_(part(head.flatten(1)).view_as(head))
        if cfg.rope_dim:
            turn(qk, rows.rotation(cfg.rope_dim, cfg.rope_theta, wide))
        last = self.n_qk + cfg.kv_heads
        cache.add(heads[:, cfg.n_heads : last].view(n_rows, 2, cfg.kv_heads, cfg.head_dim), rows)
        k, v, mask = cache.read(rows)
        q = heads[:, : cfg.n_heads].view(n_rows, cfg.kv_heads, -1, cfg.head_dim)
        o = attend(q, k, v, mask, cfg.head_dim**-0.5).reshape(n_rows, -1)  # (B, HK)
        if cfg.output_gate:
            o = o * heads[:, last:].flatten(1).sigmoid()
        return self.output.add_to(x, o)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Every query (B, G, n, K) over all slots (B, G, S, K) that the mask (B, 1, 1, S) leaves."""
    if q.is_cuda:
        return attend_by_products(q, k, v, mask, scale)
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """The same as two products, which a GPU cuts along the slots; a fused kernel gives a block to
    each head of a row, and a single query leaves most of the device without work."""
    scores = at_least_float32((q * scale) @ k.mT)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v
