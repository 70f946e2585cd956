"""The contract of a channel mixer: what works on each token by itself.

Shapes: B batch, T tokens, D d_model.
"""

from typing import NamedTuple, Self

from torch import Tensor, nn

from mixlab.core.config import Config


class ChannelOutput(NamedTuple):
    y: Tensor  # (B, T, D)
    aux_loss: Tensor | None  # scalar, mean over tokens, already weighted; None if there is none
    metrics: dict[str, Tensor]  # detached figures of this call, by name; never read inside a step


class ChannelMixerConfig(Config):
    """Base of every channel mixer's config. `d_model` is passed in, never repeated."""

    def check(self, d_model: int) -> None:
        """Raise `Rule` where the settings do not fit a stream of this width."""

    def shrunk(self) -> Self:
        """The same kind with every switch as it is, but narrow: for `--smoke` and checks."""
        return self

    def build(self, d_model: int) -> "ChannelMixer":
        raise NotImplementedError(type(self).__name__)

    def n_params(self, d_model: int) -> int:
        """Trainable numbers."""
        raise NotImplementedError(type(self).__name__)

    def n_active_params(self, d_model: int) -> int:
        """Trainable numbers that one token uses; all of them unless experts are chosen."""
        return self.n_params(d_model)

    def flops_per_token(self, d_model: int) -> float:
        """Forward FLOPs of the matrix products, per token; a multiply-add counts 2."""
        raise NotImplementedError(type(self).__name__)


class ChannelMixer(nn.Module):
    """Base of every channel mixer."""

    preferred: tuple[str, ...] = ()
    """As of a sequence mixer: kernels to take first where the config says `auto`."""

    def forward(self, x: Tensor) -> ChannelOutput:
        """(B, T, D) -> (B, T, D), each token by itself."""
        raise NotImplementedError(type(self).__name__)

    def update_balance(self) -> None:
        """Called once after every optimizer update; routers that balance by a bias move it here."""
