"""Reading prompts on a GPU with the weights of the decoding steps, straight into their caches.

The model's own forward pass keeps to what training needs: outputs for every token, states that are
returned, a norm here and a cast there, each of them an operation that Python has to start. Here a
layer is about ten of them: products with the weights that single tokens use as well, and the fused
operations of `ops.prompt` between them. Of the last layer only what the last token needs is made.
Shapes: B prompts, T tokens, N = B * T, D d_model, H heads, G key-value or key heads, K head_dim,
        V value width of a head, S slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.attention import AttentionStep
from mixlab.infer.decoding.channels import MLPStep
from mixlab.infer.decoding.gated_delta import DeltaCache, GatedDeltaNetStep
from mixlab.infer.decoding.key_values import KeyValueCache
from mixlab.infer.decoding.steps import ChannelStep, SequenceStep
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.rotary import RotaryAngles
from mixlab.ops.attention import attention
from mixlab.ops.gated_delta_rule import gated_delta_rule, launch, usable_backends
from mixlab.ops.gated_delta_rule.kernels import TRITON
from mixlab.ops.prompt import DeltaLayout, add_and_norm, delta_inputs, gate, place_heads
from mixlab.ops.rope import RopeTable
from mixlab.ops.swiglu import gated_product

WIDTHS = (16, 32, 64, 128, 256)
"""Heads that the kernels take: powers of two, which Triton's tiles are."""
TOKENS_AT_ONCE = 65_536
"""Prompts beyond so many tokens are read a few at a time: a bound on the memory of activations."""


class Place(NamedTuple):
    """Which rows of the caches prompts go to, and what they are."""

    row: int
    n_rows: int  # B
    n_tokens: int  # T
    n_before: int  # that others have left there at most
    last_only: bool  # of the outputs, those of the last tokens alone


class AttentionPrompt:
    """Whole prompts through softmax attention."""

    def __init__(self, step: AttentionStep) -> None:
        self._step = step
        cfg = step.cfg
        self._angles: RotaryAngles | None = None
        if cfg.rope_dim:
            device = step.empty.device
            self._angles = RotaryAngles(cfg.rope_dim, cfg.rope_theta).to(device)

    @staticmethod
    def fits(step: AttentionStep) -> bool:
        return step.cfg.qk_norm != "full" and step.cfg.head_dim in WIDTHS

    def __call__(self, h: Tensor, cache: KeyValueCache, to: Place) -> Tensor:
        """(N, D) of unit length to what is added to the stream, (N, D) or (B, D)."""
        step, cfg = self._step, self._step.cfg
        heads = step.projection.product(h).view(to.n_rows, to.n_tokens, -1, cfg.head_dim)
        q = heads.new_empty(to.n_rows, to.n_tokens, cfg.n_heads, cfg.head_dim)
        kv = cache.room(to.row, to.n_rows, to.n_tokens, to.n_before)  # (2, B, G, T, K)
        n_qkv = step.n_qk + cfg.kv_heads
        scale = step.qk_scale
        table = self._table(to.n_tokens)
        place_heads(heads[:, :, :n_qkv], q, kv, table, scale, cfg.norm_eps)
        if to.last_only:
            q, heads = q[:, -1:], heads[:, -1:]
        k, v = (part.transpose(1, 2) for part in kv)  # (B, T, G, K)
        o = attention(
            q=q, k=k, v=v, scale=1.0, window=cfg.window, backend=cfg.portable().backend
        )  # (B, T, H, K)
        cache.settle(kv, to.row)
        o = o.reshape(-1, cfg.n_heads, cfg.head_dim)
        by = heads[:, :, n_qkv:].view(len(o), -1) if cfg.output_gate else None
        return step.output(o.flatten(1) if by is None else gate(o, by, "sigmoid", eps=None))

    def _table(self, n_tokens: int) -> RopeTable | None:
        if self._angles is None:
            return None
        self._angles.grow(n_tokens)
        return RopeTable(self._angles.cos[:n_tokens], self._angles.sin[:n_tokens])


class DeltaPrompt:
    """Whole prompts through Gated DeltaNet."""

    def __init__(self, step: GatedDeltaNetStep) -> None:
        self._step = step
        cfg = step.cfg
        starts = dict(zip(step.widths, _starts(step.widths.values()), strict=True))
        self._layout = DeltaLayout(
            cfg.n_heads, cfg.head_dim, cfg.v_heads, cfg.v_dim, starts["b"], starts.get("a")
        )
        self._gate_at = starts.get("g")
        taps = step.taps
        self._taps = step.wide.new_ones(1, cfg.conv_channels) if taps is None else taps
        self._b_max = 2.0 if cfg.allow_neg_eigval else 1.0

    @staticmethod
    def fits(step: GatedDeltaNetStep) -> bool:
        cfg, device = step.cfg, step.order.device
        if cfg.backend not in ("auto", "triton", "fla", "flash_qla"):  # asked for by name
            return False
        if device.type != "cuda":
            return True
        usable = usable_backends(device, step.dtype, k_dim=cfg.head_dim, v_dim=cfg.v_dim)
        return "triton" in usable and {cfg.head_dim, cfg.v_dim} <= set(WIDTHS)

    def __call__(self, h: Tensor, cache: DeltaCache, to: Place) -> Tensor:
        """As `AttentionPrompt`."""
        step, cfg = self._step, self._step.cfg
        x = step.projection.product(h).view(to.n_rows, to.n_tokens, -1)
        inputs = delta_inputs(x, self._layout, self._taps, step.decay, step.dt_bias, self._b_max)
        if x.is_cuda:
            o, memory, *_ = launch.forward(*inputs, None, None, final_state=True)
        else:
            o, memory = gated_delta_rule(**inputs._asdict(), state=None, backend="chunked")
        cache.fill(to.row, self._tail(x), memory)
        if to.last_only:
            o, x = o[:, -1:], x[:, -1:]
        by = None
        if self._gate_at is not None:
            end = self._gate_at + cfg.v_heads * cfg.v_dim
            by = x[..., self._gate_at : end].flatten(0, 1)
        o = o.reshape(-1, cfg.v_heads, cfg.v_dim)
        return step.output(gate(o, by, "silu", eps=cfg.norm_eps))

    def _tail(self, x: Tensor) -> Tensor:
        """(B, W - 1, C), the last inputs of the convolution, zeros where there are none."""
        n_tail = len(self._taps) - 1
        tail = x[:, max(0, x.shape[1] - n_tail) :, : self._layout.n_channels]
        return F.pad(tail, (0, 0, n_tail - tail.shape[1], 0)) if tail.shape[1] < n_tail else tail


class MLPPrompt:
    """Whole prompts through SwiGLU."""

    def __init__(self, step: MLPStep) -> None:
        self._step = step

    @staticmethod
    def fits(step: MLPStep) -> bool:
        return True

    def __call__(self, h: Tensor) -> Tensor:
        return self._step.output(gated_product(h, self._step.projection.product.weight))


SEQUENCES: dict[type, Any] = {AttentionStep: AttentionPrompt, GatedDeltaNetStep: DeltaPrompt}
CHANNELS: dict[type, Any] = {MLPStep: MLPPrompt}
"""The steps that have a form for whole prompts."""


class Prompts:
    """A model's layers for whole prompts."""

    tokens = 2 * TOKENS_AT_ONCE
    """Of prompts, how many are worth reading one after the other while nobody waits."""

    def __init__(self, model: LanguageModel, blocks: Sequence[Any], dtype: torch.dtype) -> None:
        """`blocks` have a `sequence` and a `channel` step each."""
        self._model, self._dtype = model, dtype
        self._eps = [(b.sequence_norm.eps, b.channel_norm.eps) for b in model.blocks]
        self._parts = [
            (SEQUENCES[type(b.sequence)](b.sequence), CHANNELS[type(b.channel)](b.channel))
            for b in blocks
        ]

    @staticmethod
    def fits(model: LanguageModel, blocks: Sequence[Any], dtype: torch.dtype) -> bool:
        """Whether every layer has such a form, and kernels that run here."""
        device = model.embed_tokens.weight.device
        if model.recursion is not None or not _is_served(device, dtype):
            return False
        return all(
            _has_form(SEQUENCES, block.sequence) and _has_form(CHANNELS, block.channel)
            for block in blocks
        )

    def __call__(self, tokens: Tensor, caches: Sequence[Any], row: int, n_before: int) -> Tensor:
        """(B, T) tokens into rows from this one on; the stream (B, D) behind the last of each."""
        n_rows, n_tokens = tokens.shape
        step = max(1, TOKENS_AT_ONCE // n_tokens)
        with torch.cuda.device_of(tokens):  # where kernels are launched
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
        last = len(self._parts) - 1
        for i, (sequence, channel) in enumerate(self._parts):
            h = add_and_norm(x, y, self._eps[i][0], self._dtype)
            to = Place(row, n_rows, n_tokens, n_before, last_only=i == last)
            y = sequence(h, caches[i], to)
            if i == last:
                x = x.view(n_rows, n_tokens, -1)[:, -1].contiguous()
            h = add_and_norm(x, y, self._eps[i][1], self._dtype)
            y = channel(h)
        return x + y


def _is_served(device: torch.device, dtype: torch.dtype) -> bool:
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and is_half and TRITON is not None


def _has_form(table: dict[type, Any], step: SequenceStep | ChannelStep) -> bool:
    return type(step) in table and table[type(step)].fits(step)


def _starts(widths: Any) -> list[int]:
    starts = [0]
    for width in widths:
        starts.append(starts[-1] + width)
    return starts[:-1]
