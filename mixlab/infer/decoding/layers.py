"""All layers of a model in the form in which single tokens go through them.

They hold copies of the weights: joined, with the norms in them, in the order that their products
like. So they have to be made again when the model's own have changed.
Shapes: B rows, D d_model, V vocabulary.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from mixlab.core.errors import BackendError
from mixlab.infer.decoding.attention import AttentionStep
from mixlab.infer.decoding.channels import MLPStep, MoEStep
from mixlab.infer.decoding.gated_delta import GatedDeltaNetStep
from mixlab.infer.decoding.latent import MLAStep
from mixlab.infer.decoding.prompts import Prompts
from mixlab.infer.decoding.rows import Rows
from mixlab.infer.decoding.steps import (
    Backend,
    ChannelStep,
    Form,
    Projection,
    RowByRow,
    RowCache,
    SequenceStep,
    Unit,
    WholeModule,
    product,
)
from mixlab.nn.block import Block
from mixlab.nn.channel_mixers.mlp import MLP
from mixlab.nn.channel_mixers.moe import MoE
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.sequence_mixers.attention import Attention
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNet
from mixlab.nn.sequence_mixers.mla import MLA
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import obstacle

SEQUENCE_STEPS: dict[type, Any] = {
    Attention: AttentionStep, GatedDeltaNet: GatedDeltaNetStep, MLA: MLAStep,
}  # fmt: skip
CHANNEL_STEPS: dict[type, Any] = {MLP: MLPStep, MoE: MoEStep}
"""The mixers that have a form for single tokens; all others run as they are."""


class FusedBlock:
    """Both halves of a block for single tokens."""

    def __init__(self, block: Block, form: Form) -> None:
        self.sequence: SequenceStep = _step(
            SEQUENCE_STEPS, RowByRow, block.sequence_mixer, block.sequence_norm, form
        )
        self.channel: ChannelStep = _step(
            CHANNEL_STEPS, WholeModule, block.channel_mixer, block.channel_norm, form
        )

    def __call__(self, x: Tensor, cache: RowCache, rows: Rows) -> Tensor:
        return self.channel(self.sequence(x, cache, rows))


def _step(table: dict[type, Any], default: Any, mixer: Any, norm: Any, form: Form) -> Any:
    """By the exact class, since one that is derived from it may compute something else."""
    kind = table.get(type(mixer), default)
    if kind is not default and not kind.fits(mixer):
        kind = default
    return kind(mixer, norm, form)


class Layers:
    """Blocks and head of a model, for single tokens and, where there are kernels, for prompts."""

    def __init__(self, model: LanguageModel, form: Form, *, reads_prompts: bool) -> None:
        """`reads_prompts`: also as `prompts`, if the model has that form here."""
        self._model, self.form = model, form
        self._reads_prompts = reads_prompts and Prompts.fits(model, form.dtype)
        self.generation = 0
        """Times that the weights have been taken anew: a graph of other ones is no use."""
        self._hold()
        parts = [part for b in self.blocks for part in (b.sequence, b.channel)]
        self.is_static = all(part.is_static for part in parts)

    def _hold(self) -> None:
        model, form = self._model, self.form
        self.blocks: list[FusedBlock] = []  # before new ones are made, the old ones go
        self.blocks = [FusedBlock(block, form) for block in model.blocks]
        self.prompts = Prompts(model, self.blocks, form.dtype) if self._reads_prompts else None
        head = model.head_weight.detach()
        self._head: Any
        if form.has_kernels:
            self._norm = None
            self._head = Projection(model.norm, head * model.norm.weight.detach(), None, form)
        else:
            self._norm = Unit(model.cfg.d_model, model.norm.eps, model.norm.weight)
            self._head = product(head, None, form)
        self._seen = Seen(model)

    def refresh(self) -> None:
        """Take the weights of the model anew if they have changed, as they do in training."""
        if self._seen.is_past(self._model):
            self._hold()
            self.generation += 1

    def logits(self, x: Tensor) -> Tensor:
        """The stream (B, D) behind the last block to (B, V)."""
        if self._norm is not None:
            x = self._norm(x) * self._model.norm.weight
        return at_least_float32(self._head(x))


class Seen:
    """The state of a model's weights, to tell whether they have changed since.

    PyTorch counts changes of a tensor, but not those by a fused optimizer. That changes every
    number, so one of each tensor is looked at as well.
    """

    def __init__(self, model: LanguageModel) -> None:
        tensors = _weights(model)
        self._versions = _versions(tensors)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for t in tensors:
            if t.numel():
                one = t.detach().view(-1)[t.numel() // 2]  # shares its memory
                by_dtype.setdefault(t.dtype, []).append(one)
        self._ones = list(by_dtype.values())
        self._values = [torch.stack(ones) for ones in self._ones]

    def is_past(self, model: LanguageModel) -> bool:
        if _versions(_weights(model)) != self._versions:
            return True
        pairs = zip(self._values, map(torch.stack, self._ones), strict=True)
        # Bytes, since a NaN is not equal to itself.
        return not all(
            torch.equal(old.view(torch.uint8), new.view(torch.uint8)) for old, new in pairs
        )


def _weights(model: LanguageModel) -> list[Tensor]:
    return [t for t in model.state_dict(keep_vars=True).values() if t.is_contiguous()]


def _versions(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """What differs once a tensor has been replaced, or changed in place."""
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def form_for(model: LanguageModel, precision: torch.dtype | None, asked: Backend | None) -> Form:
    """The fastest form for a model where it is, or what was asked for.

    Raises:
        BackendError: kernels were asked for, and cannot run on these weights.
    """
    weight = model.embed_tokens.weight
    dtype = precision or weight.dtype
    if asked == "torch":
        return Form(dtype, "torch")
    reason = "these weights are not on the CPU" if weight.device.type != "cpu" else None
    is_usual = reason is None and dtype == weight.dtype == torch.float32
    if reason is None:
        reason = obstacle(dtype) if dtype == weight.dtype else "products are in another precision"
    if reason is None:
        return Form(dtype, "kernels")
    if asked == "kernels":
        raise BackendError(
            f"decoding: backend 'kernels' cannot run: {reason}. backend 'torch' runs everywhere."
        )
    if is_usual:  # the same words from the same place are shown once
        warnings.warn(
            f"decoding is slower here than it could be, without its kernels: {reason}",
            stacklevel=2,
        )
    return Form(dtype, "torch")
