"""Recurrent layers that look ahead, forget their state, or keep it too long."""

import torch
import torch.nn.functional as F
from tiny_models import sound_model

from mixlab.nn.sequence_mixers.base import MixerOutput
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNet
from mixlab.nn.short_conv import ShortConv


class CentredConv(ShortConv):
    """Padded on both sides, as convolutions are by default: sees the next token."""

    def forward(self, x, widths, tail=None, packing=None):
        parts, tail = super().forward(x, widths, tail, packing)
        end = F.silu(x.new_zeros(x.shape[0], 1, 1))
        parts = [torch.cat([y[:, 1:], end.expand_as(y[:, :1])], dim=1) for y in parts]
        return parts, tail


class DroppedState(GatedDeltaNet):
    """Decoding starts from nothing at every call."""

    def forward(self, x, state=None, packing=None):
        if state is not None:
            state = self.initial_state(x.shape[0], x.device, x.dtype)
        return super().forward(x, state, packing)


class StateOverDocuments(GatedDeltaNet):
    """The memory runs on into the next document of the row."""

    def forward(self, x, state=None, packing=None):
        return super().forward(x, state, None)


class TailOverDocuments(ShortConv):
    """Only the convolution reaches back into the document before."""

    def forward(self, x, widths, tail=None, packing=None):
        return super().forward(x, widths, tail, None)


class CarriesOverBatches(GatedDeltaNet):
    """Hands its state to the next batch, which holds other texts."""

    carry = None

    def forward(self, x, state=None, packing=None):
        if state is not None:
            return super().forward(x, state, packing)
        first = self.carry
        if first is None or first.memory.shape[0] != x.shape[0]:
            first = self.initial_state(x.shape[0], x.device, x.dtype)
        out = super().forward(x, first, None)
        self.carry = type(first)(*(part.detach() for part in out.state))
        return MixerOutput(out.y, None)


class CarriesOverRows(GatedDeltaNet):
    """Row r starts from the state that row r - 1 ends with."""

    def forward(self, x, state=None, packing=None):
        if state is not None:
            return super().forward(x, state, packing)
        first = self.initial_state(x.shape[0], x.device, x.dtype)
        ended = super().forward(x, first, None).state
        rolled = type(first)(*(part.roll(1, dims=0) for part in ended))
        return MixerOutput(super().forward(x, rolled, None).y, None)


def with_deltanet(cls):
    """A model whose second layer has the mixer `cls`."""
    model = sound_model("gated_deltanet")
    model.blocks[1].sequence_mixer.__class__ = cls
    return model


def with_conv(cls):
    """A model whose second layer has the convolution `cls`."""
    model = sound_model("gated_deltanet")
    model.blocks[1].sequence_mixer.conv1d.__class__ = cls
    return model
