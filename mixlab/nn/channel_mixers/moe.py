"""Mixture of experts as channel mixer.

Source: sparsely gated experts [arXiv:1701.06538], Switch [arXiv:2101.03961], DeepSeekMoE's shared
        expert [arXiv:2401.06066], DeepSeek-V3's routing [arXiv:2412.19437].
Ours:   dropless always; the router works in float32; no groups of experts.
Shapes: B batch, T tokens, N = B * T, D d_model, E n_experts, k n_active_experts, F d_expert.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixlab.core.errors import Rule
from mixlab.nn.channel_mixers.base import ChannelMixer, ChannelMixerConfig, ChannelOutput
from mixlab.nn.linear import Linear
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.moe import (
    Activation,
    Backend,
    Routing,
    Scores,
    balance_loss,
    balanced_bias,
    count_tokens,
    experts,
    route,
    usable_backends,
    z_loss,
)


class MoEConfig(ChannelMixerConfig):
    """Many feed-forward experts, of which a router picks a few for every token."""

    kind: Literal["moe"] = "moe"
    n_experts: PositiveInt
    """Experts to choose from."""
    n_active_experts: PositiveInt
    """Experts that each token takes (top-k)."""
    d_expert: PositiveInt
    """Width of one expert between its projections."""
    activation: Activation = "swiglu"
    """`swiglu`: three matrices per expert, gated; `silu`: two matrices with SiLU between."""
    n_shared_experts: NonNegativeInt = 0
    """Experts that every token takes besides; built as one, of n_shared_experts * d_expert."""
    shared_expert_gate: bool = False
    """Multiply the shared expert by the sigmoid of one more projection (Qwen3-Next)."""
    scores: Scores = "softmax"
    """How router logits become scores: over all experts together, or each by itself."""
    norm_topk_prob: bool = True
    """Divide the chosen scores by their sum; with softmax: softmax over the chosen logits."""
    routed_scaling_factor: PositiveFloat = 1.0
    """Factor on the weights of the chosen experts."""
    router_noise_std: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on the router logits, in training only."""
    aux_loss_weight: NonNegativeFloat = 0.01
    """Weight of the balance loss, which is 1 when experts are used evenly."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the router z-loss, which keeps logits small."""
    bias_update_rate: NonNegativeFloat | None = None
    """Step of the selection bias that balances without a loss, per optimizer update; 0 keeps a
    loaded bias as it is; absent: there is no bias."""
    backend: Backend | Literal["auto"] = "auto"
    """How experts run: grouped matrix products, or a loop over experts (the definition). `auto`:
    grouped, except for widths that its kernel cannot take."""

    @model_validator(mode="after")
    def _fits(self) -> "MoEConfig":
        if self.n_active_experts > self.n_experts:
            raise Rule(
                "n_active_experts", self.n_active_experts, f"at most n_experts = {self.n_experts}"
            )
        if self.n_experts == 1 and self.scores == "softmax":
            raise Rule(
                "n_experts", 1, "at least 2: a softmax over one expert is always 1, so nothing "
                "would train the router",
                "Take channel_mixer.kind=mlp for a single one.",
            )  # fmt: skip
        if self.norm_topk_prob and self.n_active_experts == 1:
            raise Rule(
                "norm_topk_prob", True, "false where n_active_experts = 1",
                "One weight divided by itself is always 1, so no task loss would reach the router.",
            )  # fmt: skip
        if self.shared_expert_gate and not self.n_shared_experts:
            raise Rule(
                "shared_expert_gate", True, "n_shared_experts of at least 1",
                "There is no shared expert to gate.",
            )  # fmt: skip
        return self

    def shrunk(self) -> "MoEConfig":
        """Never fewer than 2 active of several, so that top-k stays what it was; all stays all."""
        kept = min(self.n_active_experts, 2)
        takes_all = self.n_active_experts == self.n_experts
        return self.model_copy(
            update={
                "n_active_experts": kept,
                "n_experts": kept if takes_all else min(self.n_experts, 4),
                "d_expert": min(self.d_expert, 32),
                "n_shared_experts": min(self.n_shared_experts, 2),
            }
        )

    def backend_for(self, device: torch.device, dtype: torch.dtype) -> str:
        """What will run, in a stream whose width the kernel takes; for the record."""
        usable = usable_backends(device, dtype, (self.d_expert,))
        return usable[0] if self.backend == "auto" else self.backend

    def build(self, d_model: int) -> "MoE":
        return MoE(self, d_model)

    @property
    def d_shared(self) -> int:
        """Width of the shared expert; 0 if there is none."""
        return self.n_shared_experts * self.d_expert

    def _n_params(self, d_model: int, n_experts: int) -> int:
        n_matrices = 3 if self.activation == "swiglu" else 2
        width = n_experts * self.d_expert + self.d_shared
        gates = self.n_experts + (1 if self.shared_expert_gate else 0)
        return d_model * (n_matrices * width + gates)

    def n_params(self, d_model: int) -> int:
        return self._n_params(d_model, self.n_experts)

    def n_active_params(self, d_model: int) -> int:
        return self._n_params(d_model, self.n_active_experts)

    def flops_per_token(self, d_model: int) -> float:
        return 2 * self.n_active_params(d_model)


class Router(Linear):
    """(N, D) to (N, E) logits, always in float32 or wider: a rounded logit picks another expert.

    With `balances`, it owns the selection bias and counts the tokens that experts took in training
    since the last `update_balance`.
    """

    e_score_correction_bias: Tensor | None  # (E,), float32 or wider
    tokens_per_expert: Tensor | None  # (E,) int64

    def __init__(self, d_model: int, n_experts: int, *, balances: bool) -> None:
        super().__init__(d_model, n_experts)
        bias = torch.zeros(n_experts) if balances else None
        self.register_buffer("e_score_correction_bias", bias)
        # Empty whenever a checkpoint is written, which is between updates: not worth a place in it.
        counts = torch.zeros(n_experts, dtype=torch.int64) if balances else None
        self.register_buffer("tokens_per_expert", counts, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        """Move and cast as any module, but never narrow the bias: its steps would be rounded."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if bias is not None and moved is not None and moved.itemsize < 4:
            self.e_score_correction_bias = at_least_float32(bias.to(moved.device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            return F.linear(x, self.weight.to(x.dtype))


class Experts(nn.Module):
    """The weights of all experts, stacked as the stock checkpoints have them."""

    def __init__(self, cfg: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.activation = cfg.activation
        n, width = cfg.n_experts, cfg.d_expert
        if cfg.activation == "swiglu":
            self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * width, d_model))
        else:
            self.up_proj = nn.Parameter(torch.empty(n, width, d_model))
        self.down_proj = nn.Parameter(torch.empty(n, d_model, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every expert as `Linear` starts: N(0, 1 / d_in)."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(
        self, x: Tensor, routing: Routing, backend: str, preferred: tuple[str, ...] = ()
    ) -> Tensor:
        up = self.gate_up_proj if self.activation == "swiglu" else self.up_proj
        return experts(
            x=x, indices=routing.indices, weights=routing.weights, up=up, down=self.down_proj,
            activation=self.activation, backend=backend, preferred=preferred,
        )  # fmt: skip


class SharedExperts(nn.Module):
    """The expert that every token takes."""

    def __init__(self, cfg: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, cfg.d_shared) if cfg.activation == "swiglu" else None
        self.up_proj = Linear(d_model, cfg.d_shared)
        self.down_proj = Linear(cfg.d_shared, d_model)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(F.silu(self.up_proj(x)))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(ChannelMixer):
    """Routed experts, plus an optional shared one.

    In training the output carries the weighted balance and z losses and these figures of the call:
    `aux_loss` and `z_loss` (unweighted), `expert_utilization` ((E,) share of the rows each expert
    took), `routing_entropy` (nats, mean over tokens; ln E when the router is indifferent),
    `routing_entropy_frac` (the same as a fraction of ln E), `dead_experts` (experts without a
    token) and `max_load` (largest load over mean load).
    """

    def __init__(self, cfg: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.gate = Router(d_model, cfg.n_experts, balances=cfg.bias_update_rate is not None)
        self.experts = Experts(cfg, d_model)
        self.shared_experts = SharedExperts(cfg, d_model) if cfg.n_shared_experts else None
        self.shared_expert_gate = Linear(d_model, 1) if cfg.shared_expert_gate else None

    def route(self, x: Tensor) -> Routing:
        """Which experts the tokens x (..., D) take; rows are the tokens in order."""
        logits = self.gate(x.reshape(-1, x.shape[-1]))  # (N, E)
        if self.training and self.cfg.router_noise_std:
            # From the default generator, as dropout: activation checkpointing restores that one.
            logits = logits + self.cfg.router_noise_std * torch.randn_like(logits)
        return route(
            logits=logits,
            n_active=self.cfg.n_active_experts,
            scores=self.cfg.scores,
            normalize=self.cfg.norm_topk_prob,
            scaling=self.cfg.routed_scaling_factor,
            selection_bias=self.gate.e_score_correction_bias,
        )

    def forward(self, x: Tensor) -> ChannelOutput:
        routing = self.route(x)
        rows = x.reshape(-1, x.shape[-1])
        y = self.experts(rows, routing, self.cfg.backend, self.preferred).view_as(x)
        if self.shared_experts is not None:
            shared = self.shared_experts(x)
            if self.shared_expert_gate is not None:
                shared = shared * self.shared_expert_gate(x).sigmoid()
            y = y + shared
        if not self.training:
            return ChannelOutput(y, None, {})
        aux_loss, metrics = self._losses(routing)
        return ChannelOutput(y, aux_loss, metrics)

    def _losses(self, routing: Routing) -> tuple[Tensor | None, dict[str, Tensor]]:
        cfg = self.cfg
        counts = count_tokens(routing.indices, cfg.n_experts)  # (E,)
        if self.gate.e_score_correction_bias is not None and torch.is_grad_enabled():
            # Activation checkpointing counts every row twice, which changes no comparison.
            self.gate.tokens_per_expert += counts
        balance, z = balance_loss(routing.probs, counts), z_loss(routing.logits)
        loss = None
        if cfg.aux_loss_weight or cfg.z_loss_weight:
            loss = cfg.aux_loss_weight * balance + cfg.z_loss_weight * z
        losses = {"aux_loss": balance.detach(), "z_loss": z.detach()}
        return loss, losses | _figures(routing, counts)

    @torch.no_grad()
    def update_balance(self) -> None:
        """Move the selection bias once, by the tokens counted since the last call.

        To be called after every optimizer update, whatever number of micro-batches it had; an
        expert's step depends on the sum of its tokens only. Without a bias it does nothing.
        """
        gate, rate = self.gate, self.cfg.bias_update_rate
        if gate.e_score_correction_bias is None or rate is None:
            return
        bias = balanced_bias(gate.e_score_correction_bias, gate.tokens_per_expert, rate)
        gate.e_score_correction_bias.copy_(bias)
        gate.tokens_per_expert.zero_()


@torch.no_grad()
def _figures(routing: Routing, counts: Tensor) -> dict[str, Any]:
    n_experts = counts.numel()
    share = counts.to(routing.probs.dtype) / counts.sum()  # (E,)
    entropy = torch.special.entr(routing.probs).sum(dim=-1).mean()
    return {
        "expert_utilization": share,
        "routing_entropy": entropy,
        "routing_entropy_frac": entropy / math.log(n_experts) if n_experts > 1 else entropy,
        "dead_experts": (counts == 0).sum(),
        "max_load": share.max() * n_experts,
    }
