"""Telling the layers of a model which kernels to take first."""

from mixlab.jobs.config import RunConfig
from mixlab.jobs.court.cases import (
    attention_dims,
    conv_dims,
    delta_rule_dims,
    experts_dims,
    loss_dims,
)
from mixlab.jobs.court.verdicts import Verdicts
from mixlab.nn.channel_mixers.base import ChannelMixer
from mixlab.nn.channel_mixers.moe import MoEConfig
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.nn.sequence_mixers.base import SequenceMixer
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from mixlab.nn.sequence_mixers.mla import MLAConfig


def prefer_kernels(model: LanguageModel, verdicts: Verdicts) -> None:
    """Let `auto` mean what the court chose, wherever that can run; named backends stay."""
    for module in model.modules() if verdicts else ():
        if isinstance(module, SequenceMixer | ChannelMixer) and hasattr(module, "cfg"):
            module.preferred = preferred_kernels(module.cfg, model.cfg.d_model, verdicts)
        if isinstance(module, GatedDeltaNet) and module.conv1d is not None:
            module.conv1d.preferred = verdicts.choice("causal_conv", conv_dims(module.cfg))


def preferred_kernels(cfg: object, d_model: int, verdicts: Verdicts) -> tuple[str, ...]:
    """The court's choice for the op at the heart of a mixer with this config; empty if it had none
    to make."""
    if isinstance(cfg, GatedDeltaNetConfig):
        return verdicts.choice("gated_delta_rule", delta_rule_dims(cfg))
    if isinstance(cfg, AttentionConfig | MLAConfig):
        return verdicts.choice("attention", attention_dims(cfg))
    if isinstance(cfg, MoEConfig):
        return verdicts.choice("experts", experts_dims(cfg, d_model))
    return ()


def loss_backend(config: RunConfig, verdicts: Verdicts) -> str:
    """The backend of the training loss."""
    dims = loss_dims(config.model.vocab_size, config.model.d_model)
    return next(iter(verdicts.choice("cross_entropy", dims)), "auto")
