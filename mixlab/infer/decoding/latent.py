"""Single tokens through multi-head latent attention, without ever expanding a latent.

W_k goes into the query and W_v behind the sum, so all heads are queries over one cache of latents.
Shapes: B rows, S slots, H heads, L kv_lora_rank, N qk_nope_head_dim, R qk_rope_head_dim, V
        v_head_dim.
"""

import torch
from torch import Tensor

from mixlab.infer.decoding.key_values import attend
from mixlab.infer.decoding.rows import Rows, turn
from mixlab.infer.decoding.steps import (
    Form,
    Projection,
    RowCache,
    SequenceStep,
    Unit,
    fused,
    grown,
    output,
)
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers.mla import MLA, MLAState
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import latent_attention


class LatentCache(RowCache):
    """Latent and turned rotary key of every token, beside each other."""

    def __init__(self, like: Tensor, latent: int, rope: int) -> None:
        self.latent = latent
        self.kept = like.new_zeros(0, 1, 0, latent + rope)  # (rows, 1, S, L + R)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        rows, one, slots, width = self.kept.shape
        if n_rows > rows or n_tokens > slots:
            self.kept = grown(self.kept, (max(rows, n_rows), one, max(slots, n_tokens), width))

    def put(self, row: int, state: MLAState, n_before: int) -> None:
        n_rows, n_kept = state.latent.shape[:2]
        places = self.kept[row : row + n_rows, 0]  # (B, S, L + R)
        places[:, :n_kept, : self.latent] = state.latent
        places[:, :n_kept, self.latent :] = state.k_rope
        if n_before > n_kept:
            places[:, n_kept:n_before] = 0

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        self.kept[target, :, :n_tokens] = self.kept[source, :, :n_tokens]
        self.kept[target, :, n_tokens:n_before] = 0

    def row_bytes(self, n_tokens: int) -> int:
        return n_tokens * self.kept.shape[-1] * self.kept.itemsize

    def add(self, token: Tensor, rows: Rows) -> None:
        """Write (B, L + R), what is kept of the current tokens."""
        if rows.position is not None:
            self.kept[: len(rows), 0, rows.position] = token
        else:
            self.kept[rows.index, 0, rows.n_seen] = token


class MLAStep(SequenceStep):
    """The absorbed form; queries and keys turn together."""

    def __init__(self, mixer: MLA, norm: RMSNorm, form: Form) -> None:
        cfg = self.cfg = mixer.cfg
        kept, scale = mixer.kv_a_proj_with_mqa, cfg.qk_head_dim**-0.5
        self.q_b = None
        if mixer.q_a_proj is None:
            weight, bias = fused(norm, [kept, mixer.q_proj])
            weight[kept.out_features :] *= scale
            if bias is not None:
                bias[kept.out_features :] *= scale
        else:
            weight, bias = fused(norm, [kept, mixer.q_a_proj])
            expand, more = fused(mixer.q_a_layernorm, [mixer.q_b_proj])
            more = None if more is None else more * scale
            self.q_b = Projection(mixer.q_a_layernorm, expand * scale, more, form)
        self.projection = Projection(norm, weight, bias, form)
        self.empty = norm.weight.detach().new_empty(0, dtype=form.dtype)
        self.latent_unit = Unit(cfg.kv_lora_rank, cfg.norm_eps, norm.weight)
        self.latent_scale = mixer.kv_a_layernorm.weight.detach()
        split = [cfg.qk_nope_head_dim, cfg.v_head_dim]
        expand = mixer.kv_b_proj.weight.detach().to(form.dtype).unflatten(0, (cfg.n_heads, -1))
        self.w_k, w_v = expand.split(split, dim=1)  # (H, N, L), (H, V, L)
        self.w_v_t = w_v.mT  # (H, L, V)
        self.output = output(mixer.o_proj, form)
        self.has_kernels = form.has_kernels

    @staticmethod
    def fits(mixer: MLA) -> bool:
        """Not where a config asks by name for another way; nor where rotary channels begin at an
        odd place, whose neighbours are no complex numbers in memory."""
        cfg = mixer.cfg
        widths = cfg.kv_lora_rank, cfg.qk_nope_head_dim, cfg.q_lora_rank or 0
        can_turn = not any(width % 2 for width in widths)
        return cfg.decode_backend == "absorbed" and cfg.backend != "reference" and can_turn

    def new_cache(self) -> LatentCache:
        return LatentCache(self.empty, self.cfg.kv_lora_rank, self.cfg.qk_rope_head_dim)

    def __call__(self, x: Tensor, cache: LatentCache, rows: Rows) -> Tensor:
        cfg, n_rows = self.cfg, len(rows)
        kept_width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        token, q = self.projection(x).tensor_split([kept_width], dim=-1)  # (B, L + R), (B, ...)
        if self.q_b is not None:
            q = self.q_b(at_least_float32(q))
        q = q.view(n_rows, cfg.n_heads, cfg.qk_head_dim)
        q_nope, q_rope = q.split([cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], dim=-1)
        latent, k_rope = token.split([cfg.kv_lora_rank, cfg.qk_rope_head_dim], dim=-1)
        latent.copy_(self.latent_unit(at_least_float32(latent)) * self.latent_scale)
        angles = rows.rotation(cfg.qk_rope_head_dim, cfg.rope_theta, self.projection.wide)
        turn(q_rope, angles)
        turn(k_rope[:, None], angles)
        cache.add(token, rows)

        # Heads first, so that each is one product with its own part of the expansion.
        q_latent = torch.bmm(q_nope.transpose(0, 1), self.w_k).transpose(0, 1)  # (B, H, L)
        query = torch.cat([q_latent, q_rope], dim=-1)  # (B, H, L + R)
        if self.has_kernels:
            n_seen, n_keys = rows.n_seen, rows.n_keys
            o = latent_attention(query, cache.kept[:, 0], cfg.kv_lora_rank, n_seen, n_keys)
        else:
            kept = cache.kept[:n_rows, :, : rows.n_keys]  # (B, 1, S, L + R)
            values, mask = kept[..., : cfg.kv_lora_rank], rows.mask(rows.n_keys)
            o = attend(query[:, None], kept, values, mask)[:, 0]  # (B, H, L)
        o = torch.bmm(o.transpose(0, 1), self.w_v_t).transpose(0, 1)  # (B, H, V)
        return self.output.add_to(x, o.reshape(n_rows, -1))
