"""Gated DeltaNet, and plain DeltaNet, as sequence mixer.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" [arXiv:2412.06464]; without decay: Yang et
        al., DeltaNet [arXiv:2406.06484]; beta up to 2: Grazzi et al. [arXiv:2411.12537].
Ours:   One convolution over queries, keys and values; A and the time steps start as in Mamba2
        [arXiv:2405.21060]. Same function as Qwen3-Next's and Qwen3.5's layer for equal weights.
Cost:   O(T) time; a state of H * K * V numbers per sequence, for any T.
Shapes: B batch, T tokens, D d_model, G key heads, H value heads (a multiple of G), K head_dim,
        V value width of a head, W conv_size, C = 2GK + HV channels of the convolution.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixlab.core.errors import Rule
from mixlab.nn.linear import Linear, project_together
from mixlab.nn.norm import GatedRMSNorm, RMSNorm
from mixlab.nn.sequence_mixers.base import (
    SMALL_HEAD_DIM,
    MixerOutput,
    SequenceMixer,
    SequenceMixerConfig,
)
from mixlab.nn.short_conv import ShortConv
from mixlab.ops.dtypes import at_least_float32, autocast_once
from mixlab.ops.gated_delta_rule import (
    KERNELS,
    Backend,
    gated_delta_rule,
    pick_backend,
    step_backend,
)
from mixlab.ops.packing import Packing


class GatedDeltaNetConfig(SequenceMixerConfig):
    """Linear attention whose state is decayed and corrected at every token."""

    kind: Literal["gated_deltanet"] = "gated_deltanet"
    n_heads: PositiveInt
    """Query and key heads."""
    n_v_heads: PositiveInt | None = None
    """Value heads, a multiple of n_heads; each has a state of its own. Absent: n_heads."""
    head_dim: PositiveInt
    """Query and key channels of one head; the fastest kernels take 128."""
    v_head_dim: PositiveInt | None = None
    """Value channels of one head; absent: head_dim. Stock formats want them equal: widen values by
    n_v_heads rather than by this."""
    conv_size: NonNegativeInt = 4
    """Taps of the short convolution on q, k, v, the current token included; 0: no convolution."""
    decay: Literal["gated", "none"] = "gated"
    """`gated`: the state fades by a factor made from each token; `none`: plain DeltaNet."""
    allow_neg_eigval: bool = False
    """Let beta run to 2 instead of 1, so that a key's memory can change its sign."""
    output_gate: bool = True
    """Multiply the normed output by silu(g_proj(x)) before o_proj."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the output norm."""
    backend: Literal["auto", "recurrent", "chunked", "triton", "fla", "flash_qla"] = "auto"
    """Kernel of the recurrence. `auto` is settled by device, dtype and widths, and when a run
    starts on a GPU by trial; any other is that one or an error. A model that reads and writes text
    takes a kernel that fits, and single tokens by the recurrence itself."""
    conv_backend: Literal["auto", "shift", "triton", "reference"] = "auto"
    """Kernel of the convolution: `triton` (NVIDIA GPU), `shift` (plain PyTorch) or `reference`, in
    the same way."""

    @property
    def v_heads(self) -> int:
        return self.n_v_heads or self.n_heads

    @property
    def v_dim(self) -> int:
        return self.v_head_dim or self.head_dim

    @property
    def conv_channels(self) -> int:
        return 2 * self.n_heads * self.head_dim + self.v_heads * self.v_dim

    @model_validator(mode="after")
    def _fits(self) -> "GatedDeltaNetConfig":
        if self.v_heads % self.n_heads:
            below = self.v_heads - self.v_heads % self.n_heads
            near = " or ".join(str(n) for n in (below, below + self.n_heads) if n)
            raise Rule(
                "n_v_heads", self.n_v_heads, f"a multiple of n_heads = {self.n_heads}",
                f"The nearest are {near}." if below else f"The smallest is {near}.",
            )  # fmt: skip
        if self.backend == "flash_qla" and self.allow_neg_eigval:
            raise Rule(
                "backend", self.backend, "a kernel that takes beta above 1",
                "Use auto, or set allow_neg_eigval to false.",
            )  # fmt: skip
        return self

    def backend_for(
        self, device: torch.device, dtype: torch.dtype, preferred: tuple[str, ...] = ()
    ) -> Backend:
        """The kernel that will run on activations of this kind; `preferred` settles `auto`.

        Raises:
            BackendError: the backend asked for by name cannot run there.
        """
        return pick_backend(
            self.backend, device, dtype, k_dim=self.head_dim, v_dim=self.v_dim,
            b_max=2.0 if self.allow_neg_eigval else 1.0, preferred=preferred,
        )  # fmt: skip

    def portable(self) -> "GatedDeltaNetConfig":
        change = {"backend": "auto"} if self.backend in KERNELS else {}
        if self.conv_backend == "triton":
            change["conv_backend"] = "auto"
        return self.model_copy(update=change)

    def shrunk(self, len_frac: float) -> "GatedDeltaNetConfig":
        heads = min(self.n_heads, 2)
        change: dict[str, int] = {"n_heads": heads}
        if self.n_v_heads is not None:
            change["n_v_heads"] = heads * min(self.n_v_heads // self.n_heads, 2)
        if self.backend != "flash_qla":  # which takes heads of one width only
            change["head_dim"] = min(self.head_dim, SMALL_HEAD_DIM)
            if self.v_head_dim is not None:
                scaled = self.v_head_dim * change["head_dim"] // self.head_dim
                change["v_head_dim"] = max(1, min(self.v_head_dim, scaled))
        return self.model_copy(update=change)

    def build(self, d_model: int) -> "GatedDeltaNet":
        return GatedDeltaNet(self, d_model)

    def _n_projection(self, d_model: int) -> int:
        v_width = self.v_heads * self.v_dim
        d_out = self.conv_channels + self.v_heads  # q, k, v | b
        d_out += v_width if self.output_gate else 0
        d_out += self.v_heads if self.decay == "gated" else 0
        return d_model * (d_out + v_width)

    def n_params(self, d_model: int) -> int:
        decay = 2 * self.v_heads if self.decay == "gated" else 0
        conv = self.conv_size * self.conv_channels
        return self._n_projection(d_model) + conv + decay + self.v_dim

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        """Projections, and the recurrence as defined: recall, write and read, K * V each.

        Chunked kernels spend more than that, to be faster; the convolution is left out.
        """
        recurrence = 3 * self.v_heads * self.head_dim * self.v_dim
        return 2.0 * (self._n_projection(d_model) + recurrence)

    def state_bytes(self, d_model: int, n_tokens: int, dtype_bytes: int) -> int:
        """The same for any number of tokens; the memory is float32 whatever the activations."""
        tail = max(0, self.conv_size - 1) * self.conv_channels * dtype_bytes
        return tail + 4 * self.v_heads * self.head_dim * self.v_dim


class GatedDeltaNetState(NamedTuple):
    tail: Tensor  # (B, W - 1, C), the last inputs of the convolution
    memory: Tensor  # (B, H, K, V), float32 or wider


class GatedDeltaNet(SequenceMixer):
    """Linear attention that overwrites what a key recalls instead of adding to it."""

    def __init__(self, cfg: GatedDeltaNetConfig, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        qk_width, v_width = cfg.n_heads * cfg.head_dim, cfg.v_heads * cfg.v_dim
        self.q_proj = Linear(d_model, qk_width)
        self.k_proj = Linear(d_model, qk_width)
        self.v_proj = Linear(d_model, v_width)
        self.b_proj = Linear(d_model, cfg.v_heads)
        self.conv1d: ShortConv | None = None
        if cfg.conv_size:
            self.conv1d = ShortConv(cfg.conv_channels, cfg.conv_size, backend=cfg.conv_backend)
        self.a_proj: Linear | None = None
        if cfg.decay == "gated":
            self.a_proj = Linear(d_model, cfg.v_heads)
            self.A_log = nn.Parameter(torch.empty(cfg.v_heads))
            self.dt_bias = nn.Parameter(torch.empty(cfg.v_heads))
            self.reset_decay()
        self.g_proj = Linear(d_model, v_width) if cfg.output_gate else None
        norm = GatedRMSNorm if cfg.output_gate else RMSNorm
        self.o_norm = norm(cfg.v_dim, eps=cfg.norm_eps)
        self.o_proj = Linear(v_width, d_model)

    @torch.no_grad()
    def reset_decay(self) -> None:
        """Start with A ~ U(1, 16) and time steps log-uniform in [1e-3, 1e-1], as Mamba2 does."""
        self.A_log.uniform_(1, 16).log_()
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) == dt

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> GatedDeltaNetState:
        cfg = self.cfg
        tail = torch.zeros(
            batch_size, max(0, cfg.conv_size - 1), cfg.conv_channels, device=device, dtype=dtype
        )
        shape = (batch_size, cfg.v_heads, cfg.head_dim, cfg.v_dim)
        return GatedDeltaNetState(tail, at_least_float32(tail).new_zeros(shape))

    def forward(
        self,
        x: Tensor,
        state: GatedDeltaNetState | None = None,
        packing: Packing | None = None,
    ) -> MixerOutput:
        cfg, x = self.cfg, autocast_once(x)
        tail, memory = (None, None) if state is None else state
        # One product for all three, so that the convolution's input needs no copying together.
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        qkv = F.linear(x, torch.cat(weights))  # (B, T, C)
        qk_width = cfg.n_heads * cfg.head_dim
        widths = (qk_width, qk_width, cfg.v_heads * cfg.v_dim)
        if self.conv1d is None:
            q, k, v = F.silu(qkv).split(widths, dim=-1)
        else:
            (q, k, v), tail = self.conv1d(qkv, widths, tail, packing)
        v = v.unflatten(-1, (cfg.v_heads, cfg.v_dim))  # (B, T, H, V)

        log_a, b = self._gates(x)
        out = gated_delta_rule(
            q=q.unflatten(-1, (cfg.n_heads, cfg.head_dim)),  # (B, T, G, K)
            k=k.unflatten(-1, (cfg.n_heads, cfg.head_dim)),
            v=v,
            log_a=log_a,
            b=b,
            state=memory,
            packing=packing,
            normalize_qk=True,
            final_state=state is not None,
            backend=self._backend(v, is_continued=state is not None),
        )
        if self.g_proj is None:
            y = self.o_norm(out.o)
        else:
            y = self.o_norm(out.o, self.g_proj(x).unflatten(-1, (cfg.v_heads, cfg.v_dim)))
        y = self.o_proj(y.flatten(-2))  # (B, T, D)
        return MixerOutput(y, None if state is None else GatedDeltaNetState(tail, out.state))

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the decay and step size, (B, T, H) each.

        The decay adds up over thousands of tokens, so both are kept wide.
        """
        if self.a_proj is None:
            b, a = self.b_proj(x), None
        else:
            b, a = project_together(x, self.b_proj, self.a_proj)
        b = at_least_float32(b).sigmoid()
        if self.cfg.allow_neg_eigval:
            b = 2 * b
        if a is None:
            return torch.zeros_like(b), b
        dt = F.softplus(at_least_float32(a) + self.dt_bias)
        return -at_least_float32(self.A_log).exp() * dt, b

    def _backend(self, v: Tensor, *, is_continued: bool) -> Backend:
        cfg = self.cfg.portable() if is_continued else self.cfg
        backend = cfg.backend_for(v.device, v.dtype, self.preferred)
        if is_continued and v.shape[1] == 1:
            # For one token the matrix form has nothing to gain.
            return step_backend(cfg.backend, backend)
        if is_continued and cfg.backend == "auto" and backend == "flash_qla":
            # FlashQLA compiles for a minute before the first prompt; a prompt is not worth that.
            return cfg.backend_for(v.device, v.dtype, ("triton",))
        return backend
