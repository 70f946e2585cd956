"""Single tokens through softmax attention, with keys and values in a cache that stays in place.

With a window the cache is a ring of that many slots: keys come turned, so their order in it does
not matter. Query heads that share keys are queries of one head, so nothing is repeated for them.
Channels of queries and keys stand in the order in which those that turn together are neighbours:
a product of the two does not notice. The scale of the scores is in the weights of the queries.
Shapes: B rows, S slots, H query heads, G key-value heads, K head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.rows import Rows, pair_order, turn
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

    def __init__(
        self, like: Tensor, n_heads: int, width: int, window: int | None, order: Tensor | None
    ) -> None:
        self.window, self._order = window, order
        self.kv = like.new_zeros(2, 0, n_heads, 0, width)  # (2, rows, G, S, K)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        n_slots = n_tokens if self.window is None else min(n_tokens, self.window)
        _, rows, heads, slots, width = self.kv.shape
        if n_rows > rows or n_slots > slots:
            self.kv = grown(self.kv, (2, max(rows, n_rows), heads, max(slots, n_slots), width))

    def put(self, row: int, state: AttentionState, n_before: int) -> None:
        n_rows, n_kept = state.k.shape[:2]
        k, v = state.k, state.v  # (B, S, G, K)
        if self.window is not None and state.n_seen > self.window:
            k, v = (part.roll(state.n_seen % self.window, 1) for part in (k, v))
        if self._order is not None:
            k = k[..., self._order]
        places = self.kv[:, row : row + n_rows]
        for place, kept in zip(places, (k, v), strict=True):  # (B, G, S, K)
            copy_heads(kept.transpose(1, 2), place[:, :, :n_kept])
        if n_before > n_kept:
            places[..., n_kept:n_before, :] = 0

    def move(self, source: int, target: int, n_tokens: int) -> None:
        self.kv[:, target, :, :n_tokens] = self.kv[:, source, :, :n_tokens]

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
        device = norm.weight.device
        self.n_qk = cfg.n_heads + cfg.kv_heads
        self.order: Tensor | None = None  # of the channels of a key
        channels = torch.arange(cfg.head_dim)
        if cfg.rope_dim:
            channels = torch.cat([pair_order(cfg.rope_dim), channels[cfg.rope_dim :]])
            self.order = channels.to(device)
        heads = torch.arange(self.n_qk)[:, None] * cfg.head_dim
        order = (heads + channels).flatten().to(device)  # of those of all queries and keys
        parts = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
        parts += [mixer.g_proj] * cfg.output_gate
        weight, bias = fused(norm, parts)
        scale = torch.ones(len(order), device=device, dtype=at_least_float32(weight[:0]).dtype)
        scale[: cfg.n_heads * cfg.head_dim] = cfg.head_dim**-0.5
        self.units: list[Unit] = []
        self.qk_scale: Tensor | None = None
        if cfg.qk_norm == "none":  # nothing stands between the product and the scores
            weight[: len(order)] = weight[order] * scale[:, None]
            if bias is not None:
                bias[: len(order)] = bias[order] * scale
        else:
            weight[: len(order)] = weight[order]
            if bias is not None:
                bias[: len(order)] = bias[order]
            norms = [mixer.q_norm, mixer.k_norm]
            weights = [part.weight.detach() for part in norms]
            if cfg.qk_norm == "head":
                self.units = [Unit(cfg.head_dim, cfg.norm_eps, norm.weight)]
                weights = [w.repeat(n) for w, n in zip(weights, self._n_heads, strict=True)]
            else:
                self.units = [Unit(len(w), cfg.norm_eps, norm.weight) for w in weights]
            self.qk_scale = (torch.cat(weights)[order] * scale).view(self.n_qk, -1)  # (H + G, K)
        self.projection = Projection(norm, weight, bias, dtype)
        self.output = output(mixer.o_proj, dtype)
        self.empty = norm.weight.detach().new_empty(0, dtype=dtype)

    @property
    def _n_heads(self) -> tuple[int, int]:
        """Of queries and of keys."""
        return self.cfg.n_heads, self.cfg.kv_heads

    @staticmethod
    def fits(mixer: Attention) -> bool:
        """Not the definition, which a config asks for by name."""
        return mixer.cfg.backend != "reference" and mixer.causal

    def new_cache(self) -> KeyValueCache:
        cfg = self.cfg
        return KeyValueCache(self.empty, cfg.kv_heads, cfg.head_dim, cfg.window, self.order)

    def __call__(self, x: Tensor, cache: KeyValueCache, rows: Rows) -> Tensor:
        cfg, n_rows = self.cfg, len(rows)
        heads = self.projection(x).view(n_rows, -1, cfg.head_dim)  # (B, H + 2G or 2H + 2G, K)
        qk = heads[:, : self.n_qk]
        if self.qk_scale is not None:
            self._normalize(qk)
        if cfg.rope_dim:
            wide = self.projection.wide
            turn(qk, rows.rotation(cfg.rope_dim, cfg.rope_theta, wide))
        last = self.n_qk + cfg.kv_heads
        cache.add(heads[:, cfg.n_heads : last].view(n_rows, 2, cfg.kv_heads, cfg.head_dim), rows)
        k, v, mask = cache.read(rows)
        q = heads[:, : cfg.n_heads].view(n_rows, cfg.kv_heads, -1, cfg.head_dim)
        o = attend(q, k, v, mask).reshape(n_rows, -1)  # (B, HK)
        if cfg.output_gate:
            o = o * heads[:, last:].flatten(1).sigmoid()
        return self.output.add_to(x, o)

    def _normalize(self, qk: Tensor) -> None:
        """Queries and keys (B, H + G, K) to unit length times their weights, in place."""
        if len(self.units) == 1:
            scale = self.units[0].inverse(at_least_float32(qk))
        else:
            parts = at_least_float32(qk).split(self._n_heads, dim=1)
            inverses = [
                unit.inverse(part.flatten(1)).expand(-1, n)
                for unit, part, n in zip(self.units, parts, self._n_heads, strict=True)
            ]
            scale = torch.cat(inverses, dim=1)[..., None]
        if qk.dtype == scale.dtype:
            qk.mul_(scale).mul_(self.qk_scale)
        else:
            qk.copy_(at_least_float32(qk) * scale * self.qk_scale)


def copy_heads(source: Tensor, target: Tensor) -> None:
    """Copy (..., K), K numbers at a time in one order of the rest into another one."""
    if source.is_cuda and source.dtype == target.dtype:
        # A GPU copies number by number where the orders differ; so let 16 bytes be a number.
        n = 16 // source.itemsize
        if all(
            part.stride(-1) == 1
            and part.shape[-1] % n == 0
            and not any(place % n for place in (part.storage_offset(), *part.stride()[:-1]))
            for part in (source, target)
        ):
            source, target = source.view(torch.complex128), target.view(torch.complex128)
    target.copy_(source)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Every query (B, G, n, K) over all slots (B, G, S, K) that the mask (B, 1, 1, S) leaves."""
    if q.is_cuda:
        return attend_by_products(q, k, v, mask)
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same as two products, which a GPU cuts along the slots; a fused kernel gives a block to
    each head of a row, and a single query leaves most of the device without work."""
    scores = at_least_float32(q @ k.mT)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v
