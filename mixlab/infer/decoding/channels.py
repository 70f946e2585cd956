"""Single tokens through the channel mixers.

Shapes: B rows, D d_model, E experts, k experts per token, F expert width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.product import Product, few_rows
from mixlab.infer.decoding.steps import ChannelStep, Projection, Unit, fused, output, product
from mixlab.nn.channel_mixers.mlp import MLP
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.norm import RMSNorm
from mixlab.ops.dtypes import at_least_float32
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
        self.cfg = cfg = mixer.cfg
        self.dtype = dtype
        scale = norm.weight.detach()
        self.unit = Unit(scale.numel(), norm.eps, scale)
        self.router = at_least_float32(mixer.gate.weight.detach() * scale)
        self.bias = mixer.gate.e_score_correction_bias
        experts = mixer.experts
        up = experts.gate_up_proj if experts.activation == "swiglu" else experts.up_proj
        self.up = (up.detach() * scale).to(dtype)  # (E, F or 2F, D)
        self.down = experts.down_proj.detach().to(dtype)  # (E, D, F)
        self.shared: Product | None = None
        if mixer.shared_experts is not None:
            shared = mixer.shared_experts
            parts = [shared.gate_proj] if cfg.activation == "swiglu" else []
            parts += [shared.up_proj]
            parts += [mixer.shared_expert_gate] * cfg.shared_expert_gate
            self.shared = product(*fused(norm, parts), dtype)
            self.shared_output = output(shared.down_proj, dtype)

    @staticmethod
    def fits(mixer: MoE) -> bool:
        """Not the definition, which a config asks for by name."""
        return mixer.cfg.backend != "loop"

    def __call__(self, x: Tensor) -> Tensor:
        normed = self.unit(x)  # (B, D), without the norm's weight
        indices, weights = self._route(normed)
        run = self._all if x.is_cuda else self._chosen
        x = run(x, normed.to(self.dtype), indices, weights.to(x.dtype))
        if self.shared is None:
            return x
        hidden, gate = self.shared(normed), None
        if self.cfg.shared_expert_gate:
            hidden, gate = hidden[:, :-1], hidden[:, -1:]
        hidden = _activate(hidden, self.cfg.activation)
        # The gate is a number per row, so it may come before the product as well.
        return self.shared_output.add_to(x, hidden if gate is None else hidden * gate.sigmoid())

    def _route(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts (B, k) and their weights."""
        cfg, logits = self.cfg, F.linear(at_least_float32(normed), self.router)
        if cfg.scores == "softmax" and cfg.norm_topk_prob and self.bias is None:
            top = logits.topk(cfg.n_active_experts)  # what is not chosen cancels out
            return top.indices, top.values.softmax(-1) * cfg.routed_scaling_factor
        routing = route(
            logits=logits, n_active=cfg.n_active_experts, scores=cfg.scores,
            normalize=cfg.norm_topk_prob, scaling=cfg.routed_scaling_factor,
            selection_bias=self.bias,
        )  # fmt: skip
        return routing.indices, routing.weights

    def _chosen(self, stream: Tensor, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Rows sorted by expert, so that each chosen expert takes a stretch of them."""
        if len(x) == 1:
            parts = [(expert, slice(i, i + 1)) for i, expert in enumerate(indices[0].tolist())]
            out = self._stretches(x.expand(len(parts), -1), parts, weights.T)
            return stream + out.sum(0, keepdim=True, dtype=stream.dtype)
        flat = indices.flatten()  # (M,), M = B k
        order = flat.argsort(stable=True)
        rows = order // indices.shape[1]
        parts = _stretches(flat[order].tolist())
        out = self._stretches(x[rows], parts, weights.flatten()[order, None])
        return stream.index_add(0, rows, out.to(stream.dtype))

    def _stretches(self, x: Tensor, parts: list[tuple[int, slice]], weights: Tensor) -> Tensor:
        """(M, D) through the expert of each stretch, by the weights (M, 1)."""
        hidden = torch.cat([few_rows(self.up[expert], x[here]) for expert, here in parts])
        hidden = _activate(hidden, self.cfg.activation).mul_(weights)  # (M, F)
        return torch.cat([few_rows(self.down[expert], hidden[here]) for expert, here in parts])

    def _all(self, stream: Tensor, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Every expert on every row, for the weights are read anyway; nothing is waited for."""
        hidden = torch.matmul(x, self.up.mT)  # (E, B, F or 2F)
        out = torch.bmm(_activate(hidden, self.cfg.activation), self.down.mT)  # (E, B, D)
        share = torch.zeros(len(x), len(self.up), dtype=weights.dtype, device=x.device)
        share.scatter_(1, indices, weights)  # (B, E)
        return stream + torch.einsum("be,ebd->bd", share, out.to(weights.dtype))


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
