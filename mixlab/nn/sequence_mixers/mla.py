"""Multi-head latent attention as sequence mixer.

Source: DeepSeek-V2 [arXiv:2405.04434], section 2.1; sizes and names as in DeepSeek-V3
        [arXiv:2412.19437]. Rotary channels turn in interleaved pairs.
Cost:   O(T^2) time; a state of kv_lora_rank + qk_rope_head_dim numbers per token, whatever the
        number of heads.
Shapes: B batch, T tokens, S tokens in the state, D d_model, H heads, L kv_lora_rank,
        N qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mixlab.core.errors import Rule
from mixlab.nn.linear import Linear
from mixlab.nn.norm import RMSNorm
from mixlab.nn.rotary import RotaryAngles
from mixlab.nn.sequence_mixers.attention import mean_keys
from mixlab.nn.sequence_mixers.base import (
    SMALL_HEAD_DIM,
    MixerOutput,
    SequenceMixer,
    SequenceMixerConfig,
)
from mixlab.ops.attention import Backend, usable_backends
from mixlab.ops.dtypes import autocast_once
from mixlab.ops.latent_attention import Backend as LatentBackend
from mixlab.ops.latent_attention import latent_attention
from mixlab.ops.packing import Packing
from mixlab.ops.rope import apply_rope


class MLAConfig(SequenceMixerConfig):
    """Causal attention that keeps one small latent per token instead of keys and values."""

    kind: Literal["mla"] = "mla"
    reads_both_ways: ClassVar[bool] = True
    n_heads: PositiveInt
    """Query heads; every one has its own keys and values, expanded from the shared latent."""
    q_lora_rank: PositiveInt | None = None
    """Width of the query latent; absent: queries come straight from the stream."""
    kv_lora_rank: PositiveInt
    """Width of the key-value latent, the part of a token that decoding keeps."""
    qk_nope_head_dim: NonNegativeInt
    """Channels of a head's query and key that carry content and no position; may be 0."""
    qk_rope_head_dim: PositiveInt
    """Channels of a head's query that are turned; the key to them is shared by all heads."""
    v_head_dim: PositiveInt
    """Channels of a head's value."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary wavelengths."""
    bias: bool = False
    """Biases on the projections to the latents and on the output projection."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the norms on the latents; stock loaders assume the default."""
    backend: Backend = "auto"
    """Kernel of the attention over expanded keys, as in the mixer `attention`."""
    decode_backend: LatentBackend = "absorbed"
    """How a single token attends to the state: `expanded` makes keys and values of all latents,
    `absorbed` folds the expansion into query and output. Several tokens at once always expand."""

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @model_validator(mode="after")
    def _fits(self) -> "MLAConfig":
        if self.qk_rope_head_dim % 2:
            raise Rule(
                "qk_rope_head_dim", self.qk_rope_head_dim,
                "an even number, since rotary channels turn in pairs",
                f"The next one is {self.qk_rope_head_dim + 1}.",
            )  # fmt: skip
        return self

    def backend_for(self, device: torch.device, dtype: torch.dtype) -> str:
        """What runs packed rows of activations of this kind, for the record."""
        usable = usable_backends(device, dtype, k_dim=self.qk_head_dim, v_dim=self.v_head_dim)
        return usable[0] if self.backend == "auto" else self.backend

    def portable(self) -> "MLAConfig":
        return self.model_copy(update={"backend": "auto"}) if self.backend == "flash" else self

    def shrunk(self, len_frac: float) -> "MLAConfig":
        small = SMALL_HEAD_DIM
        return self.model_copy(
            update={
                "n_heads": min(self.n_heads, 2),
                "q_lora_rank": self.q_lora_rank and min(self.q_lora_rank, small),
                "kv_lora_rank": min(self.kv_lora_rank, small),
                "qk_nope_head_dim": min(self.qk_nope_head_dim, small),  # 0 stays 0
                "qk_rope_head_dim": min(self.qk_rope_head_dim, small),
                "v_head_dim": min(self.v_head_dim, small),
            }
        )

    def build(self, d_model: int) -> "MLA":
        return MLA(self, d_model)

    def _n_weights(self, d_model: int) -> int:
        """Weights of the projections, which are also the multiply-adds per token."""
        q_in = d_model if self.q_lora_rank is None else self.q_lora_rank
        q_down = 0 if self.q_lora_rank is None else d_model * self.q_lora_rank
        kv_down = d_model * (self.kv_lora_rank + self.qk_rope_head_dim)
        per_head = (
            q_in * self.qk_head_dim
            + self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
            + self.v_head_dim * d_model
        )
        return q_down + kv_down + self.n_heads * per_head

    def n_params(self, d_model: int) -> int:
        q_rank = self.q_lora_rank or 0
        biases = q_rank + self.kv_lora_rank + self.qk_rope_head_dim + d_model if self.bias else 0
        return self._n_weights(d_model) + biases + q_rank + self.kv_lora_rank

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        mixing = 2 * self.n_heads * (self.qk_head_dim + self.v_head_dim)
        return 2 * self._n_weights(d_model) + mixing * mean_keys(seq_len, None)

    def state_bytes(self, d_model: int, n_tokens: int, dtype_bytes: int) -> int:
        return n_tokens * (self.kv_lora_rank + self.qk_rope_head_dim) * dtype_bytes


class MLAState(NamedTuple):
    latent: Tensor  # (B, S, L), normed
    k_rope: Tensor  # (B, S, R), already turned


class MLA(SequenceMixer):
    """Softmax attention over the earlier tokens of the same document, through a latent."""

    def __init__(self, cfg: MLAConfig, d_model: int) -> None:
        super().__init__()
        self.cfg, self.backend_in_use = cfg, cfg.portable().backend
        q_width = cfg.n_heads * cfg.qk_head_dim
        self.q_proj: Linear | None = None
        self.q_a_proj: Linear | None = None
        if cfg.q_lora_rank is None:
            self.q_proj = Linear(d_model, q_width)
        else:
            self.q_a_proj = Linear(d_model, cfg.q_lora_rank, bias=cfg.bias)
            self.q_a_layernorm = RMSNorm(cfg.q_lora_rank, eps=cfg.norm_eps)
            self.q_b_proj = Linear(cfg.q_lora_rank, q_width)
        self.kv_a_proj_with_mqa = Linear(
            d_model, cfg.kv_lora_rank + cfg.qk_rope_head_dim, bias=cfg.bias
        )
        self.kv_a_layernorm = RMSNorm(cfg.kv_lora_rank, eps=cfg.norm_eps)
        self.kv_b_proj = Linear(
            cfg.kv_lora_rank, cfg.n_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
        )
        self.o_proj = Linear(cfg.n_heads * cfg.v_head_dim, d_model, bias=cfg.bias)
        self.rotary = RotaryAngles(cfg.qk_rope_head_dim, cfg.rope_theta)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MLAState:
        latent, rope = (
            torch.empty((batch_size, 0, width), device=device, dtype=dtype)
            for width in (self.cfg.kv_lora_rank, self.cfg.qk_rope_head_dim)
        )
        return MLAState(latent, rope)

    def forward(
        self, x: Tensor, state: MLAState | None = None, packing: Packing | None = None
    ) -> MixerOutput:
        cfg, x = self.cfg, autocast_once(x)
        if self.q_a_proj is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = q.unflatten(-1, (cfg.n_heads, cfg.qk_head_dim)).split(
            [cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], dim=-1
        )  # (B, T, H, N), (B, T, H, R)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            [cfg.kv_lora_rank, cfg.qk_rope_head_dim], dim=-1
        )  # (B, T, L), (B, T, R)
        latent = self.kv_a_layernorm(latent)

        # Scores depend on distances only, so a packed row needs no restart of positions.
        table = self.rotary(0 if state is None else state.latent.shape[1], x)
        q_rope = apply_rope(q_rope, table, "interleaved")
        k_rope = apply_rope(k_rope[:, :, None], table, "interleaved")[:, :, 0]  # one head for all

        if state is not None:
            latent = torch.cat([state.latent, latent], dim=1)  # (B, S, L)
            k_rope = torch.cat([state.k_rope, k_rope], dim=1)  # (B, S, R)
            state = MLAState(latent, k_rope)
        is_decoding = state is not None and x.shape[1] == 1
        o = latent_attention(
            q_nope=q_nope, q_rope=q_rope, latent=latent, k_rope=k_rope,
            weight=self.kv_b_proj.weight, scale=cfg.qk_head_dim**-0.5, packing=packing,
            backend=cfg.decode_backend if is_decoding else "expanded",
            attention_backend=cfg.backend if state is None else self.backend_in_use,
            preferred=self.preferred,
        ).flatten(-2)  # fmt: skip  # (B, T, HV)
        return MixerOutput(self.o_proj(o), state)
