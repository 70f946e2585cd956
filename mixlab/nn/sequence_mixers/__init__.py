"""Sequence mixers, by the name a config uses for them."""

from mixlab.core.registry import Registry
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.nn.sequence_mixers.base import MixerOutput, SequenceMixer, SequenceMixerConfig
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.nn.sequence_mixers.mla import MLAConfig

__all__ = ["SEQUENCE_MIXERS", "MixerOutput", "SequenceMixer", "SequenceMixerConfig"]

SEQUENCE_MIXERS: Registry[SequenceMixerConfig] = Registry(
    {
        "attention": AttentionConfig,
        "gated_deltanet": GatedDeltaNetConfig,
        "mla": MLAConfig,
    }
)
