"""Channel mixers, by the name a config uses for them."""

from mixlab.core.registry import Registry
from mixlab.nn.channel_mixers.base import ChannelMixer, ChannelMixerConfig, ChannelOutput
from mixlab.nn.channel_mixers.mlp import MLPConfig
from mixlab.nn.channel_mixers.moe import MoEConfig

__all__ = ["CHANNEL_MIXERS", "ChannelMixer", "ChannelMixerConfig", "ChannelOutput"]

CHANNEL_MIXERS: Registry[ChannelMixerConfig] = Registry(
    {
        "mlp": MLPConfig,
        "moe": MoEConfig,
    }
)
