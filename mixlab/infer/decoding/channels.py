"""Single tokens through the channel mixers.

Shapes: B rows, D d_model, E experts, k experts per token, F expert width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.infer.decoding.product import Product, few_rows
from mixlab.infer.decoding.steps import (
    ChannelStep,
    Form,
    Projection,
    Unit,
    activate,
    fused,
    output,
    product,
)
from mixlab.nn.channel_mixers.mlp import MLP
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.norm import RMSNorm
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import ExpertsKernel, ProductKernel
from mixlab.ops.moe import route


class MLPStep(ChannelStep):
    """Gate and up as one product."""

    def __init__(self, mixer: MLP, norm: RMSNorm, form: Form) -> None:
        parts = [mixer.gate_proj, mixer.up_proj]
        self.projection = Projection(norm, *fused(norm, parts), form, activation="swiglu")
        self.output = output(mixer.down_proj, form)

    @staticmethod
    def fits(mixer: MLP) -> bool:
        return True

    def __call__(self, x: Tensor) -> Tensor:
        return self.output.add_to(x, self.projection(x))


class MoEStep(ChannelStep):
    """Only the experts that are chosen; on a GPU, where that would be a wait, all of them."""

    def __init__(self, mixer: MoE, norm: RMSNorm, form: Form) -> None:
        self.cfg = mixer.cfg
        self.dtype = form.dtype
        scale = norm.weight.detach()
        self.unit = Unit(scale.numel(), norm.eps, scale)
        self.router = at_least_float32(mixer.gate.weight.detach() * scale)
        self.bias = mixer.gate.e_score_correction_bias
        experts = mixer.experts
        up = experts.gate_up_proj if experts.activation == "swiglu" else experts.up_proj
        self.up = (up.detach() * scale).to(form.dtype)  # (E, F or 2F, D)
        self.down = experts.down_proj.detach().to(form.dtype)  # (E, D, F)
        self.shared: Product | ProductKernel | None = None
        self.kernel: ExpertsKernel | None = None
        if form.has_kernels:
            self._hold_kernels(mixer, norm, form)
        elif mixer.shared_experts is not None:
            parts = self._shared_parts(mixer)
            parts += [mixer.shared_expert_gate] * self.cfg.shared_expert_gate
            self.shared = product(*fused(norm, parts), form)
            self.shared_output = output(mixer.shared_experts.down_proj, form)

    def _hold_kernels(self, mixer: MoE, norm: RMSNorm, form: Form) -> None:
        """Each with the norm in it, and no weights besides theirs."""
        cfg, eps = self.cfg, norm.eps
        self.router_kernel = ProductKernel(self.router, None, eps=eps)
        self.kernel = ExpertsKernel(self.up, self.down, eps=eps, activation=cfg.activation)
        self.up = self.down = self.up[:0]
        self.shared_gate: ProductKernel | None = None
        if mixer.shared_experts is not None:
            weight, bias = fused(norm, self._shared_parts(mixer))
            self.shared = ProductKernel(weight, bias, eps=eps, activation=cfg.activation)
            self.shared_output = output(mixer.shared_experts.down_proj, form)
            if cfg.shared_expert_gate:
                self.shared_gate = ProductKernel(*fused(norm, [mixer.shared_expert_gate]), eps=eps)

    def _shared_parts(self, mixer: MoE) -> list[nn.Linear]:
        """What stands before the activation of the shared expert."""
        shared = mixer.shared_experts
        parts = [shared.gate_proj] if self.cfg.activation == "swiglu" else []
        return [*parts, shared.up_proj]

    @staticmethod
    def fits(mixer: MoE) -> bool:
        """Not the definition, which a config asks for by name."""
        return mixer.cfg.backend != "loop"

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self._by_kernels(x)
        normed = self.unit(x)  # (B, D), without the norm's weight
        indices, weights = self._route(F.linear(at_least_float32(normed), self.router))
        run = self._all if x.is_cuda else self._chosen
        x = run(x, normed.to(self.dtype), indices, weights.to(x.dtype))
        if self.shared is None:
            return x
        hidden, gate = self.shared(normed), None
        if self.cfg.shared_expert_gate:
            hidden, gate = hidden[:, :-1], hidden[:, -1:]
        hidden = activate(hidden, self.cfg.activation)
        # The gate is a number per row, so it may come before the product as well.
        return self.shared_output.add_to(x, hidden if gate is None else hidden * gate.sigmoid())

    def _by_kernels(self, x: Tensor) -> Tensor:
        """The same, where rows are put together by expert in the kernel."""
        assert self.kernel is not None
        y = self.kernel(x, *self._route(self.router_kernel(x)))
        if self.shared is None:
            return y
        hidden = self.shared(x)
        if self.shared_gate is not None:
            hidden = hidden * self.shared_gate(x).sigmoid()
        return self.shared_output.add_to(y, hidden)

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts (B, k) and their weights."""
        cfg = self.cfg
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
        hidden = activate(hidden, self.cfg.activation).mul_(weights)  # (M, F)
        return torch.cat([few_rows(self.down[expert], hidden[here]) for expert, here in parts])

    def _all(self, stream: Tensor, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Every expert on every row, for the weights are read anyway; nothing is waited for."""
        hidden = torch.matmul(x, self.up.mT)  # (E, B, F or 2F)
        out = torch.bmm(activate(hidden, self.cfg.activation), self.down.mT)  # (E, B, D)
        share = torch.zeros(len(x), len(self.up), dtype=weights.dtype, device=x.device)
        share.scatter_(1, indices, weights)  # (B, E)
        return stream + torch.einsum("be,ebd->bd", share, out.to(weights.dtype))


def _stretches(experts: list[int]) -> list[tuple[int, slice]]:
    """Where each number of a sorted list stands."""
    starts = [i for i, expert in enumerate(experts) if i == 0 or expert != experts[i - 1]]
    ends = [*starts[1:], len(experts)]
    return [(experts[a], slice(a, b)) for a, b in zip(starts, ends, strict=True)]
