"""The contract of a sequence mixer: what moves information between the tokens of a sequence.

The same `forward` trains (no state), prefills (empty state, many tokens) and decodes (state, one
token). A mixer knows nothing of its layer number, the optimizer or the model around it.
Shapes: B batch, T tokens, D d_model.
"""

from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.ops.packing import Packing

SMALL_HEAD_DIM = 16
"""Channels of a head in a shrunk mixer; even, so that rotary pairs fit."""


class MixerOutput(NamedTuple):
    y: Tensor  # (B, T, D)
    state: Any  # what the next call continues from; None if the call was given none


class SequenceMixerConfig(Config):
    """Base of every mixer's config. `d_model` is passed in, never repeated.

    All formulas count one sequence mixer; tests hold them against the built module.
    """

    reads_both_ways: ClassVar[bool] = False
    """Whether the tokens of a prefix can see each other both ways (`Packing.prefix`)."""

    def check(self, d_model: int) -> None:
        """Raise `Rule` where the settings do not fit a stream of this width."""

    def shrunk(self, len_frac: float) -> Self:
        """The same kind with every switch as it is, but a few narrow heads (for `--smoke`, checks).

        `len_frac` is by how much sequences get shorter; widths go down to about `SMALL_HEAD_DIM`.
        """
        return self

    def portable(self) -> Self:
        """The same without a kernel's name where only some hardware or precision has it.

        A named kernel is what trains a model. A trained one is used wherever it is.
        """
        return self

    def build(self, d_model: int) -> "SequenceMixer":
        raise NotImplementedError(type(self).__name__)

    def n_params(self, d_model: int) -> int:
        """Trainable numbers."""
        raise NotImplementedError(type(self).__name__)

    def flops_per_token(self, d_model: int, seq_len: int) -> float:
        """Forward FLOPs of the matrix products, per token, averaged over a causal sequence.

        A multiply-add counts 2. Norms, softmax and gates are left out, as is customary.
        """
        raise NotImplementedError(type(self).__name__)

    def state_bytes(self, d_model: int, n_tokens: int, dtype_bytes: int) -> int:
        """Bytes of one sequence's decoding state after `n_tokens` tokens."""
        raise NotImplementedError(type(self).__name__)


class SequenceMixer(nn.Module):
    """Base of every sequence mixer."""

    preferred: tuple[str, ...] = ()
    """Kernels to take first where the config says `auto`, such as those found fastest by trial."""

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        """The state of sequences that have not begun; `dtype` is that of activations."""
        raise NotImplementedError(type(self).__name__)

    def forward(self, x: Tensor, state: Any = None, packing: Packing | None = None) -> MixerOutput:
        """(B, T, D) -> (B, T, D), causal: output t depends on inputs 0..t of its document.

        With a `state`, x continues the sequences that the state has seen, and the new state is
        returned. `packing` separates the documents of a row in training; it excludes a state.
        """
        raise NotImplementedError(type(self).__name__)
