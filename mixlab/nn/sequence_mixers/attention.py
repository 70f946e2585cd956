"""Softmax attention as sequence mixer.

Source: grouped heads [arXiv:2305.13245], RoPE [arXiv:2104.09864], QK-norm [arXiv:2010.04245],
        sliding window [arXiv:2310.06825], output gate [arXiv:2505.06708].
Cost:   O(T^2) time, or O(T * window); a state of 2 * n_kv_heads * head_dim numbers per token kept.
Shapes: B batch, T tokens, S tokens in the state, D d_model, H heads, G key-value heads,
        K head_dim.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mixlab.core.errors import Rule
from mixlab.nn.linear import Linear, project_together
from mixlab.nn.norm import RMSNorm
from mixlab.nn.rotary import RotaryAngles
from mixlab.nn.sequence_mixers.base import (
    SMALL_HEAD_DIM,
    MixerOutput,
    SequenceMixer,
    SequenceMixerConfig,
)
from mixlab.ops.attention import Backend, attention, usable_backends
from mixlab.ops.dtypes import autocast_once
from mixlab.ops.packing import Packing
from mixlab.ops.rope import apply_rope


class AttentionConfig(SequenceMixerConfig):
    """Causal multi-head attention, grouped, rotary, optionally windowed, normed and gated."""

    kind: Literal["attention"] = "attention"
    reads_both_ways: ClassVar[bool] = True
    n_heads: PositiveInt
    """Query heads."""
    n_kv_heads: PositiveInt | None = None
    """Key-value heads, each shared by n_heads / n_kv_heads query heads; absent: n_heads."""
    head_dim: PositiveInt
    """Channels of one head."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary wavelengths."""
    rope_frac: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of a head's channels that is turned; 0 means no positions at all."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm on queries and keys: per head (Qwen3) or over all heads at once (OLMoE)."""
    window: PositiveInt | None = None
    """Keys that a query sees, itself included; absent: all earlier ones."""
    output_gate: bool = False
    """Multiply the output by sigmoid(g_proj(x)) before o_proj."""
    bias: bool = False
    """Biases on the query, key and value projections."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the QK-norm."""
    backend: Backend = "auto"
    """Kernel. `auto` is settled by the inputs: FlashAttention (`flash`) for packed documents on a
    GPU, else PyTorch's own (`sdpa`). `reference` is the definition. Any other than `auto` is that
    one or an error."""

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def rope_dim(self) -> int:
        return round(self.head_dim * self.rope_frac)

    @model_validator(mode="after")
    def _fits(self) -> "AttentionConfig":
        if self.n_heads % self.kv_heads:
            raise Rule(
                "n_kv_heads", self.n_kv_heads, f"a divisor of n_heads = {self.n_heads}",
                f"It may be {_divisors(self.n_heads)}.",
            )  # fmt: skip
        if self.rope_dim % 2:
            raise Rule(
                "rope_frac", self.rope_frac,
                f"an even number of rotary channels; {self.rope_frac} of head_dim = "
                f"{self.head_dim} gives {self.rope_dim}",
            )  # fmt: skip
        return self

    def backend_for(self, device: torch.device, dtype: torch.dtype) -> str:
        """What runs packed rows of activations of this kind, for the record."""
        usable = usable_backends(device, dtype, k_dim=self.head_dim, v_dim=self.head_dim)
        return usable[0] if self.backend == "auto" else self.backend

    def portable(self) -> "AttentionConfig":
        return self.model_copy(update={"backend": "auto"}) if self.backend == "flash" else self

    def shrunk(self, len_frac: float) -> "AttentionConfig":
        groups = min(self.kv_heads, 2)
        window = self.window
        if window is not None:
            # Not down to 1, which leaves queries and keys without effect.
            window = max(min(window, 2), round(window * len_frac))
        return self.model_copy(
            update={
                "n_heads": groups * min(self.n_heads // self.kv_heads, 2),
                "n_kv_heads": groups if self.n_kv_heads is not None else None,
                "head_dim": self._small_head_dim(),
                "window": window,
            }
        )

    def _small_head_dim(self) -> int:
        """The smallest width whose turned part is even, and there if it was."""
        for width in range(min(SMALL_HEAD_DIM, self.head_dim), self.head_dim):
            turned = round(width * self.rope_frac)
            if turned % 2 == 0 and bool(turned) == bool(self.rope_dim):
                return width
        return self.head_dim

    def build(self, d_model: int) -> "Attention":
        return Attention(self, d_model)

    def n_params(self, d_model: int) -> int:
        q, kv = self.n_heads * self.head_dim, self.kv_heads * self.head_dim
        projections = d_model * (q + 2 * kv + (q if self.output_gate else 0)) + q * d_model
        biases = q + 2 * kv if self.bias else 0
        norms = {"none": 0, "head": 2 * self.head_dim, "full": q + kv}[self.qk_norm]
        return projections + biases + norms

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        q, kv = self.n_heads * self.head_dim, self.kv_heads * self.head_dim
        projections = d_model * (q + 2 * kv + (q if self.output_gate else 0)) + q * d_model
        return 2 * projections + 4 * q * mean_keys(seq_len, self.window)

    def state_bytes(self, d_model: int, n_tokens: int, dtype_bytes: int) -> int:
        kept = n_tokens if self.window is None else min(n_tokens, self.window)
        return 2 * kept * self.kv_heads * self.head_dim * dtype_bytes


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys that a query sees, averaged over a causal sequence."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    return window - window * (window - 1) / (2 * seq_len)


def _divisors(n: int) -> str:
    return ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)


class AttentionState(NamedTuple):
    k: Tensor  # (B, S, G, K), already turned
    v: Tensor  # (B, S, G, K)
    n_seen: int  # tokens so far; more than S once a window has dropped some


class Attention(SequenceMixer):
    """Softmax attention over the earlier tokens of the same document.

    With `causal=False`, over the whole row, later tokens included: for models that answer at once.
    """

    def __init__(
        self, cfg: AttentionConfig, d_model: int, *, causal: bool = True, length: int | None = None
    ) -> None:
        """`length` is that of every row, where it is known."""
        super().__init__()
        self.cfg, self.causal = cfg, causal
        self.backend_in_use = cfg.portable().backend
        self.rotary: RotaryAngles | None = None
        if cfg.rope_dim:
            self.rotary = RotaryAngles(cfg.rope_dim, cfg.rope_theta, length=length or 0)
        q_width, kv_width = cfg.n_heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
        self.q_proj = Linear(d_model, q_width, bias=cfg.bias)
        self.k_proj = Linear(d_model, kv_width, bias=cfg.bias)
        self.v_proj = Linear(d_model, kv_width, bias=cfg.bias)
        self.g_proj = Linear(d_model, q_width) if cfg.output_gate else None
        self.o_proj = Linear(q_width, d_model)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if cfg.qk_norm != "none":
            per_head = cfg.qk_norm == "head"
            self.q_norm = RMSNorm(cfg.head_dim if per_head else q_width, eps=cfg.norm_eps)
            self.k_norm = RMSNorm(cfg.head_dim if per_head else kv_width, eps=cfg.norm_eps)

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> AttentionState:
        shape = (batch_size, 0, self.cfg.kv_heads, self.cfg.head_dim)
        empty = torch.empty(shape, device=device, dtype=dtype)
        return AttentionState(empty, empty, 0)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, packing: Packing | None = None
    ) -> MixerOutput:
        cfg, x = self.cfg, autocast_once(x)
        q, k, v = self.project(x)
        if cfg.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (cfg.n_heads, cfg.head_dim))  # (B, T, H, K)
        k = k.unflatten(-1, (cfg.kv_heads, cfg.head_dim))  # (B, T, G, K)
        v = v.unflatten(-1, (cfg.kv_heads, cfg.head_dim))  # (B, T, G, K)
        if cfg.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)

        n_seen = 0 if state is None else state.n_seen
        if self.rotary is not None:
            # Scores depend on distances only, so a packed row needs no restart of positions.
            table = self.rotary(n_seen, x)
            q, k = apply_rope(q, table), apply_rope(k, table)
        if state is not None and n_seen:
            k, v = torch.cat([state.k, k], dim=1), torch.cat([state.v, v], dim=1)  # (B, S, G, K)

        o = attention(
            q=q, k=k, v=v, scale=cfg.head_dim**-0.5, window=cfg.window, packing=packing,
            backend=cfg.backend if state is None else self.backend_in_use,
            preferred=self.preferred, causal=self.causal,
        ).flatten(-2)  # fmt: skip  # (B, T, HK)
        if self.g_proj is not None:
            o = o * self.g_proj(x).sigmoid()
        if state is not None:
            keep = slice(None) if cfg.window is None else slice(-cfg.window, None)
            state = AttentionState(k[:, keep], v[:, keep], n_seen + x.shape[1])
        return MixerOutput(self.o_proj(o), state)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H K), keys and values (B, T, G K) of x."""
        return project_together(x, self.q_proj, self.k_proj, self.v_proj)
