"""Single tokens through the channel mixers.

Shapes: B rows, D d_model, E experts, k experts per token, F expert width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.steps import ChannelStep, Projection, Unit, fused, output
from mixlab.nn.channel_mixers.mlp import MLP
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.norm import RMSNorm
from mixlab.ops.moe import Activation, route


class MLPStep(ChannelStep):
    """Gate and up as one product."""

    def __init__(self, mixer: MLP, norm: RMSNorm, dtype: torch.dtype) -> None:
        parts = [mixer.gate_proj, mixer.up_proj]
        self.projection = Projection(norm, *fused(norm, parts), dtype)
        self.output = output(mixer.down_proj, dtype)

    @staticmethod
    def fits(mixer: MLP) -> bool:
        return True

    def __call__(self, x: Tensor) -> Tensor:
        return self.output.add_to(x, _activate(self.projection(x), "swiglu"))


class MoEStep(ChannelStep):
    """Only the experts that are chosen; on a GPU, where that would be a wait, all of them."""

    def __init__(self, mixer: MoE, norm: RMSNorm, dtype: torch.dtype) -> None:
        self.cfg, self.gate = mixer.cfg, mixer.gate
        self.unit, self.scale = Unit(norm.weight.numel(), norm.eps, norm.weight), norm.weight
        experts = mixer.experts
        up = experts.gate_up_proj if experts.activation == "swiglu" else experts.up_proj
        self.up = up.detach().to(dtype).mT.contiguous()  # (E, D, F or 2F), see `product`
        self.down = experts.down_proj.detach().to(dtype).mT  # (E, F, D)
        self.shared: Projection | None = None
        self.shared_gate: Projection | None = None
        if mixer.shared_experts is not None:
            shared = mixer.shared_experts
            gate = [shared.gate_proj] if mixer.cfg.activation == "swiglu" else []
            self.shared = Projection(norm, *fused(norm, [*gate, shared.up_proj]), dtype)
            self.shared_output = output(shared.down_proj, dtype)
        if mixer.shared_expert_gate is not None:
            self.shared_gate = Projection(norm, *fused(norm, [mixer.shared_expert_gate]), dtype)

    @staticmethod
    def fits(mixer: MoE) -> bool:
        """Not the definition, which a config asks for by name."""
        return mixer.cfg.backend == "grouped"

    def __call__(self, x: Tensor) -> Tensor:
        normed = self.unit(x) * self.scale  # (B, D)
        routing = route(
            logits=self.gate(normed), n_active=self.cfg.n_active_experts, scores=self.cfg.scores,
            normalize=self.cfg.norm_topk_prob, scaling=self.cfg.routed_scaling_factor,
            selection_bias=self.gate.e_score_correction_bias,
        )  # fmt: skip
        weights, inputs = routing.weights, normed.to(self.up.dtype)
        run = self._all if x.is_cuda else self._chosen
        y = run(inputs, routing.indices, weights.to(x.dtype)) + x
        if self.shared is None:
            return y
        shared = _activate(self.shared(x), self.cfg.activation)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x).sigmoid()
        return self.shared_output.add_to(y, shared)

    def _chosen(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Rows sorted by expert, so that each chosen expert takes a stretch of them."""
        flat = indices.flatten()  # (M,), M = B k
        order = flat.argsort(stable=True)
        rows = order // indices.shape[1]
        stretches = _stretches(flat[order].tolist())
        taken = x[rows]  # (M, D)
        hidden = x.new_empty(len(flat), self.up.shape[2])
        for expert, here in stretches:
            torch.mm(taken[here], self.up[expert], out=hidden[here])
        hidden = _activate(hidden, self.cfg.activation)
        hidden.mul_(weights.flatten()[order, None].to(hidden.dtype))
        out = torch.empty_like(taken)
        for expert, here in stretches:
            torch.mm(hidden[here], self.down[expert], out=out[here])
        return torch.zeros_like(x, dtype=weights.dtype).index_add_(0, rows, out.to(weights.dtype))

    def _all(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Every expert on every row, for the weights are read anyway; nothing is waited for."""
        n_experts = len(self.up)
        hidden = torch.matmul(x, self.up)  # (E, B, F or 2F)
        out = torch.bmm(_activate(hidden, self.cfg.activation), self.down)  # (E, B, D)
        share = torch.zeros(len(x), n_experts, dtype=weights.dtype, device=x.device)
        share.scatter_(1, indices, weights)  # (B, E)
        return torch.einsum("be,ebd->bd", share, out.to(weights.dtype))


def _stretches(experts: list[int]) -> list[tuple[int, slice]]:
    """Where each number of a sorted list stands."""
    starts = [i for i, expert in enumerate(experts) if i == 0 or expert != experts[i - 1]]
    ends = [*starts[1:], len(experts)]
    return [(experts[a], slice(a, b)) for a, b in zip(starts, ends, strict=True)]


def _activate(h: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(h)
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
