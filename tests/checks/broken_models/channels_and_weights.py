"""Experts that choose among tokens, parameters that do nothing, weights that are too narrow."""

import torch
from tiny_models import sound_model
from torch import nn

from mixlab.nn.channel_mixers.base import ChannelOutput
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.language_model import LanguageModel, Trunk


class ExpertChoice(MoE):
    """Every expert takes its best tokens of the whole batch: tokens compete over rows and time."""

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])  # (N, D)
        probs = self.gate(rows).softmax(dim=-1)  # (N, E)
        n_taken = max(1, rows.shape[0] * self.cfg.n_active_experts // self.cfg.n_experts)
        y = torch.zeros_like(rows)
        for e in range(self.cfg.n_experts):
            weight, taken = probs[:, e].topk(n_taken)
            gate, up = (rows[taken] @ self.experts.gate_up_proj[e].T).chunk(2, dim=-1)
            out = (nn.functional.silu(gate) * up) @ self.experts.down_proj[e].T
            y = y.index_add(0, taken, out * weight[:, None])
        return ChannelOutput(y.view_as(x), None, {})


def expert_choice():
    model = sound_model(channel="moe")
    model.blocks[1].channel_mixer.__class__ = ExpertChoice
    return model


def dead_parameter():
    """A projection that is built, counted and never called."""
    model = sound_model()
    model.blocks[0].sequence_mixer.gate_proj = nn.Linear(24, 24)
    return model


def dead_expert():
    """One expert that the router can never choose."""
    model = sound_model(channel="moe bias")
    model.blocks[0].channel_mixer.gate.e_score_correction_bias[3] = -100.0
    return model


class ContextFree(LanguageModel):
    """Knows how frequent tokens are and nothing else: the input never enters."""

    def trunk(self, tokens, state=None, packing=None):
        out = super().trunk(torch.zeros_like(tokens[:, :1]), None, None)
        h = out.h.expand(*tokens.shape, -1)
        return Trunk(h, state, out.aux_loss, out.metrics)


def context_free():
    model = sound_model()
    model.__class__ = ContextFree
    return model


def bfloat16_weights():
    return sound_model().bfloat16()


def loud_start():
    """Logits of a standard deviation of 5 before anything was learned."""
    model = sound_model(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)  # it starts with a standard deviation of 0.02
    return model


class OtherHead(LanguageModel):
    """Its config says that the head is the embedding; it is a matrix of its own."""

    @property
    def head_weight(self):
        return self.other


def untied_head():
    model = sound_model()
    model.other = nn.Parameter(model.embed_tokens.weight.detach().clone())
    model.__class__ = OtherHead
    return model


class FrozenHead(LanguageModel):
    """The embedding, but not trained as the head."""

    @property
    def head_weight(self):
        return self.embed_tokens.weight.detach()


def frozen_head():
    model = sound_model()
    model.__class__ = FrozenHead
    return model


def frozen_weights():
    model = sound_model()
    model.blocks[0].channel_mixer.up_proj.weight.requires_grad_(False)
    return model
