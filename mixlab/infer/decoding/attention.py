"""Single tokens through softmax attention, with keys and values in a cache that stays in place.

Query heads that share keys are queries of one head, so nothing is repeated for them.
Channels of queries and keys stand in the order in which those that turn together are neighbours:
a product of the two does not notice. The scale of the scores is in the weights of the queries.
Shapes: B rows, S slots, H query heads, G key-value heads, K head_dim.
"""

import torch
from torch import Tensor

from mixlab.infer.decoding.key_values import ColumnCache, KeyValueCache, PanelCache
from mixlab.infer.decoding.rows import Rows, pair_order, turn
from mixlab.infer.decoding.steps import (
    Form,
    Projection,
    SequenceStep,
    Unit,
    fused,
    output,
)
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers.attention import Attention
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import AttentionKernel


class AttentionStep(SequenceStep):
    """The projections as one product, norm and turn of queries and keys together."""

    def __init__(self, mixer: Attention, norm: RMSNorm, form: Form) -> None:
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
        self.projection = Projection(norm, weight, bias, form)
        self.output = output(mixer.o_proj, form)
        self.empty = norm.weight.detach().new_empty(0, dtype=form.dtype)
        self.kernel: AttentionKernel | None = None
        if form.has_kernels:
            self.kernel = AttentionKernel(
                self.empty, n_heads=cfg.n_heads, n_kv_heads=cfg.kv_heads, head_dim=cfg.head_dim,
                rope_dim=cfg.rope_dim, window=cfg.window, scale=self.qk_scale,
                norms_all=cfg.qk_norm != "head", eps=cfg.norm_eps, gated=cfg.output_gate,
            )  # fmt: skip

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
        settings = self.empty, cfg.kv_heads, cfg.head_dim, cfg.window, self.order
        if self.kernel is not None:
            return PanelCache(*settings, panel=self.kernel.panel)
        kind = ColumnCache if self.empty.device.type == "cpu" else KeyValueCache
        return kind(*settings)

    def __call__(self, x: Tensor, cache: KeyValueCache, rows: Rows) -> Tensor:
        cfg, n_rows = self.cfg, len(rows)
        heads = self.projection(x).view(n_rows, -1, cfg.head_dim)  # (B, H + 2G or 2H + 2G, K)
        if self.kernel is not None:
            assert isinstance(cache, PanelCache)
            angles = self._angles(rows)
            o = self.kernel(heads, angles, rows.n_seen, rows.n_keys, cache.k, cache.v)
            return self.output.add_to(x, o)
        qk = heads[:, : self.n_qk]
        if self.qk_scale is not None:
            self._normalize(qk)
        angles = self._angles(rows)
        if angles is not None:
            turn(qk, angles)
        last = self.n_qk + cfg.kv_heads
        q, kv, gate = heads.tensor_split([cfg.n_heads, last], dim=1)
        cache.add(kv.view(n_rows, 2, cfg.kv_heads, cfg.head_dim), rows)
        o = cache.attend(q.view(n_rows, cfg.kv_heads, -1, cfg.head_dim), rows)  # (B, HK)
        if cfg.output_gate:
            o = o * gate.flatten(1).sigmoid()
        return self.output.add_to(x, o)

    def _angles(self, rows: Rows) -> Tensor | None:
        """By which queries and keys turn."""
        cfg = self.cfg
        if not cfg.rope_dim:
            return None
        return rows.rotation(cfg.rope_dim, cfg.rope_theta, self.projection.wide)

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
