"""Attention whose mask is missing, is added instead of applied, or forgets the documents."""

import torch
from tiny_models import sound_model
from torch import Tensor

from mixlab.nn.sequence_mixers.attention import Attention
from mixlab.nn.sequence_mixers.base import MixerOutput


class PlainAttention(Attention):
    """One softmax over whatever the mask leaves; decoding is left as it was."""

    def mask(self, length: int) -> Tensor:
        """(T, T), added to the scores."""
        raise NotImplementedError

    def forward(self, x, state=None, packing=None):
        if state is not None:
            return super().forward(x, state, packing)
        q, k, v = (
            proj(x).unflatten(-1, (self.cfg.n_heads, self.cfg.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, T, K)
        scores = q @ k.mT * self.cfg.head_dim**-0.5 + self.mask(x.shape[1]).to(x)
        o = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)
        return MixerOutput(self.o_proj(o), None)


class NoMask(PlainAttention):
    def mask(self, length):
        return torch.zeros(length, length)


class AllOnesMask(PlainAttention):
    """The artefact behind a published 87 %: "may look everywhere" as ones, added to the scores."""

    def mask(self, length):
        return torch.ones(length, length)


class ForgetsDocuments(Attention):
    def forward(self, x, state=None, packing=None):
        return super().forward(x, state, None)


class ForgetsLate(Attention):
    """Its window is so many tokens longer in decoding than in training."""

    more: int

    def forward(self, x, state=None, packing=None):
        trained = self.cfg
        if state is not None:
            self.cfg = trained.model_copy(update={"window": trained.window + self.more})
        try:
            return super().forward(x, state, packing)
        finally:
            self.cfg = trained


def with_attention(cls):
    """A model whose second layer has the mixer `cls`."""
    model = sound_model()
    model.blocks[1].sequence_mixer.__class__ = cls
    return model
