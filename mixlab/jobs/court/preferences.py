"""Telling the layers of a model which kernels to take first."""

from mixlab.jobs.config import RunConfig
from mixlab.jobs.court.cases import attention_dims, conv_dims, delta_rule_dims, loss_dims
from mixlab.jobs.court.verdicts import Verdicts
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.sequence_mixers.attention import Attention
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNet
from mixlab.nn.sequence_mixers.mla import MLA


def prefer_kernels(model: LanguageModel, verdicts: Verdicts) -> None:
    """Let `auto` mean what the court chose, wherever that can run; named backends stay."""
    for module in model.modules() if verdicts else ():
        if isinstance(module, GatedDeltaNet):
            module.preferred = verdicts.choice("gated_delta_rule", delta_rule_dims(module.cfg))
            if module.conv1d is not None:
                module.conv1d.preferred = verdicts.choice("causal_conv", conv_dims(module.cfg))
        elif isinstance(module, Attention | MLA):
            module.preferred = verdicts.choice("attention", attention_dims(module.cfg))


def loss_backend(config: RunConfig, verdicts: Verdicts) -> str:
    """The backend of the training loss."""
    dims = loss_dims(config.model.vocab_size, config.model.d_model)
    return next(iter(verdicts.choice("cross_entropy", dims)), "auto")
