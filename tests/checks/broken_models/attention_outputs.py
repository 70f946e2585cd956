"""Attention that is sound in itself, and an output that is not."""

import torch
from broken_models.attention_masks import with_attention
from torch import Tensor
from torch.nn import functional as F

from mixlab.nn.sequence_mixers.attention import Attention
from mixlab.nn.sequence_mixers.base import MixerOutput


class SpoiltAttention(Attention):
    """What attention gives, changed; decoding is left as it was."""

    def spoil(self, y: Tensor, is_packed: bool) -> Tensor:
        """(B, T, D) to the same shape."""
        raise NotImplementedError

    def forward(self, x, state=None, packing=None):
        y, state_after = super().forward(x, state, packing)
        return MixerOutput(
            y if state is not None else self.spoil(y, packing is not None), state_after
        )


class DropsAShare(SpoiltAttention):
    share: float

    def spoil(self, y, is_packed):
        return F.dropout(y, self.share, training=True)


def dropping(share: float):
    model = with_attention(DropsAShare)
    model.blocks[1].sequence_mixer.share = share
    return model


class ScalesInTraining(SpoiltAttention):
    def spoil(self, y, is_packed):
        return 1.1 * y if self.training else y


class LeaksAtASeam(SpoiltAttention):
    """The last token of the first hundred sees the next one; nothing else does."""

    def spoil(self, y, is_packed):
        if y.shape[1] <= 100:
            return y
        return torch.cat([y[:, :99], y[:, 99:100] + y[:, 100:101], y[:, 100:]], dim=1)


class LeaksWhenPacked(SpoiltAttention):
    def spoil(self, y, is_packed):
        return y + 0.1 * y.roll(-1, dims=1) if is_packed else y


class CentredOverTime(SpoiltAttention):
    def spoil(self, y, is_packed):
        return y - y.mean(dim=1, keepdim=True)


class CentredOverRows(SpoiltAttention):
    def spoil(self, y, is_packed):
        return y - y.mean(dim=0, keepdim=True)
