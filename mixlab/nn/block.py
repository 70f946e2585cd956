"""One residual block: a sequence mixer, then a channel mixer, each behind a norm.

x = x + sequence_mixer(norm(x));   x = x + channel_mixer(norm(x))
"""

from typing import Any, NamedTuple

from pydantic import PositiveFloat, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixlab.core.config import Config
from mixlab.nn.channel_mixers import CHANNEL_MIXERS
from mixlab.nn.channel_mixers.base import ChannelOutput
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS
from mixlab.nn.sequence_mixers.base import MixerOutput
from mixlab.nn.sequence_mixers.token_mlp import refuse_token_mlp
from mixlab.ops.packing import Packing


class BlockConfig(Config):
    """What one block is made of."""

    sequence_mixer: SEQUENCE_MIXERS.annotation()  # type: ignore[valid-type]
    """Moves information between tokens."""
    channel_mixer: CHANNEL_MIXERS.annotation()  # type: ignore[valid-type]
    """Works on each token by itself."""

    @field_validator("sequence_mixer", mode="before")
    @classmethod
    def _is_causal(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("kind") == "token_mlp":
            refuse_token_mlp()
        return value

    def n_params(self, d_model: int) -> int:
        mixers = self.sequence_mixer.n_params(d_model) + self.channel_mixer.n_params(d_model)
        return mixers + 2 * d_model

    def n_active_params(self, d_model: int) -> int:
        active = self.channel_mixer.n_active_params(d_model)
        return self.sequence_mixer.n_params(d_model) + active + 2 * d_model

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        mixing = self.sequence_mixer.flops_per_token(d_model, seq_len)
        return mixing + self.channel_mixer.flops_per_token(d_model)


class BlockOutput(NamedTuple):
    x: Tensor  # (B, T, D)
    state: Any
    aux_loss: Tensor | None
    metrics: dict[str, Tensor]


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(
        self, cfg: BlockConfig, d_model: int, *, dropout: float, norm_eps: PositiveFloat
    ) -> None:
        super().__init__()
        self.sequence_norm = RMSNorm(d_model, eps=norm_eps)
        self.sequence_mixer = cfg.sequence_mixer.build(d_model)
        self.channel_norm = RMSNorm(d_model, eps=norm_eps)
        self.channel_mixer = cfg.channel_mixer.build(d_model)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, state: Any = None, packing: Packing | None = None) -> BlockOutput:
        x, state = self.mix_sequence(x, state, packing)
        out = self.mix_channels(x)
        return BlockOutput(out.y, state, out.aux_loss, out.metrics)

    def recomputing(self, x: Tensor, packing: Packing | None) -> BlockOutput:
        """`forward` that keeps only its input, and computes the rest again in the backward pass.

        Same values and gradients, random draws included: activation checkpointing
        [arXiv:1604.06174].
        """
        return checkpoint(self, x, None, packing, use_reentrant=False)

    def mix_sequence(
        self, x: Tensor, state: Any = None, packing: Packing | None = None
    ) -> MixerOutput:
        """The first half: the stream with what the sequence mixer adds to it.

        The channel mixer then reads `channel_norm` of that.
        """
        mixed = self.sequence_mixer(self.sequence_norm(x), state, packing)
        return MixerOutput(x + self.dropout(mixed.y), mixed.state)

    def mix_channels(self, x: Tensor) -> ChannelOutput:
        """The second half: the stream with what the channel mixer adds to it, and its figures."""
        mixed = self.channel_mixer(self.channel_norm(x))
        return mixed._replace(y=x + self.dropout(mixed.y))
