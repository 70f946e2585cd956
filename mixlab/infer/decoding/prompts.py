"""Reading prompts on a GPU with the weights of the decoding steps, straight into their caches.

The model's own forward pass keeps to what training needs: outputs for every token, states that are
returned, a norm here and a cast there, each of them an operation that Python has to start. Here a
layer is about ten of them: products with the weights that single tokens use as well, and the fused
operations of `ops.prompt` between them. Of the last layer only what the last token needs is made.
A mixer that has no such form is called as it is.
Shapes: B prompts, T tokens, N = B * T, D d_model.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.infer.decoding.attention import AttentionStep
from mixlab.infer.decoding.channels import MLPStep
from mixlab.infer.decoding.gated_delta import GatedDeltaNetStep
from mixlab.infer.decoding.prefill import rounded
from mixlab.infer.decoding.prompt_mixers import (
    AttentionPrompt,
    DeltaPrompt,
    MLPPrompt,
    Place,
    attention_kernels,
)
from mixlab.infer.decoding.steps import ChannelStep, RowCache, SequenceStep
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.norm import RMSNorm
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.gated_delta_rule.kernels import TRITON
from mixlab.ops.prompt import add_and_norm

TOKENS_AT_ONCE = 65_536
"""Prompts beyond so many tokens are read a few at a time: a bound on the memory of activations."""
SEQUENCES: dict[type, Any] = {AttentionStep: AttentionPrompt, GatedDeltaNetStep: DeltaPrompt}
CHANNELS: dict[type, Any] = {MLPStep: MLPPrompt}
"""The steps that have a form for whole prompts."""


class OwnForm:
    """A mixer as it is, behind the weight of its norm."""

    def __init__(self, mixer: nn.Module, norm: RMSNorm, dtype: torch.dtype) -> None:
        self._norm, self._dtype = norm, dtype
        self._mixer = rounded(mixer, dtype).eval()

    def _casting(self, h: Tensor) -> AbstractContextManager[None]:
        is_half = self._dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(h.device.type, dtype=self._dtype, enabled=is_half)


class OwnSequence(OwnForm):
    """Whole prompts through any sequence mixer."""

    def __call__(self, h: Tensor, cache: RowCache, to: Place) -> Tensor:
        """(N, D) of unit length to what is added to the stream, (N, D) or (B, D)."""
        x = (h * self._norm.weight).view(to.n_rows, to.n_tokens, -1)
        state = self._mixer.initial_state(to.n_rows, h.device, self._dtype)
        with self._casting(h):
            y, state = self._mixer(x, state)
        cache.put(to.row, state, to.n_before)
        return y[:, -1] if to.last_only else y.flatten(0, 1)


class OwnChannel(OwnForm):
    """Whole prompts through any channel mixer."""

    def __call__(self, h: Tensor) -> Tensor:
        with self._casting(h):
            return self._mixer((h * self._norm.weight)[None]).y[0]


class Prompts:
    """A model's layers for whole prompts."""

    tokens = 2 * TOKENS_AT_ONCE
    """Of prompts, how many are worth reading one after the other while nobody waits."""

    def __init__(self, model: LanguageModel, blocks: Sequence[Any], dtype: torch.dtype) -> None:
        """`blocks` have a `sequence` and a `channel` step each."""
        self._model = model
        self._layers: list[tuple[_Half, _Half]] = []
        for own, block in zip(model.blocks, blocks, strict=True):
            sequence, channel = _form(SEQUENCES, block.sequence), _form(CHANNELS, block.channel)
            if sequence is None:
                sequence = OwnSequence(own.sequence_mixer, own.sequence_norm, dtype)
            if channel is None:
                channel = OwnChannel(own.channel_mixer, own.channel_norm, dtype)
            halves = (sequence, own.sequence_norm), (channel, own.channel_norm)
            self._layers.append(tuple(_Half(part, norm.eps, dtype) for part, norm in halves))

    @staticmethod
    def fits(model: LanguageModel, dtype: torch.dtype) -> bool:
        """Whether kernels run here, and every layer runs once."""
        is_half = dtype in (torch.bfloat16, torch.float16)
        is_served = model.embed_tokens.weight.is_cuda and is_half and TRITON is not None
        return is_served and model.recursion is None

    def __call__(self, tokens: Tensor, caches: Sequence[Any], row: int, n_before: int) -> Tensor:
        """(B, T) tokens into rows from this one on; the stream (B, D) behind the last of each."""
        n_rows, n_tokens = tokens.shape
        step = max(1, TOKENS_AT_ONCE // n_tokens)
        device = torch.cuda.device_of(tokens)  # where kernels are launched
        with device, attention_kernels(n_tokens):
            found = [
                self._read(tokens[i : i + step], caches, row + i, n_before)
                for i in range(0, n_rows, step)
            ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _read(self, tokens: Tensor, caches: Sequence[Any], row: int, n_before: int) -> Tensor:
        n_rows, n_tokens = tokens.shape
        x = F.embedding(tokens.flatten(), self._model.embed_tokens.weight)
        if self._model.cfg.scale_embeddings:
            x = x * self._model.cfg.d_model**0.5
        y: Tensor | None = None
        last = len(self._layers) - 1
        for i, (sequence, channel) in enumerate(self._layers):
            to = Place(row, n_rows, n_tokens, n_before, last_only=i == last)
            y = sequence.part(sequence.normed(x, y), caches[i], to)
            if i == last:
                x = x.view(n_rows, n_tokens, -1)[:, -1].contiguous()
            y = channel.part(channel.normed(x, y))
        return x + y


class _Half(NamedTuple):
    """A mixer with what comes before it."""

    part: Any
    eps: float
    dtype: torch.dtype  # of the products

    def normed(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The stream, to which y is added, by its length; wide for who rounds by himself."""
        dtype = at_least_float32(x[:0]).dtype if isinstance(self.part, OwnForm) else self.dtype
        return add_and_norm(x, y, self.eps, dtype)


def _form(table: dict[type, Any], step: SequenceStep | ChannelStep) -> Any:
    kind = table.get(type(step))
    return kind(step) if kind is not None and kind.fits(step) else None
