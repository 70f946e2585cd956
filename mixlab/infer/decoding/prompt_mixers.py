"""The mixers that have a form of their own for whole prompts, with the weights of their steps.

Shapes: B prompts, T tokens, N = B * T, D d_model, H heads, G key-value or key heads, K head_dim,
        V value width of a head, S slots.
"""

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixlab.infer.decoding.attention import AttentionStep
from mixlab.infer.decoding.channels import MLPStep
from mixlab.infer.decoding.gated_delta import DeltaCache, GatedDeltaNetStep
from mixlab.infer.decoding.key_values import KeyValueCache, attend
from mixlab.nn.rotary import RotaryAngles
from mixlab.ops.attention import attention
from mixlab.ops.attention.kernels import flash_obstacle
from mixlab.ops.gated_delta_rule import gated_delta_rule, launch, usable_backends
from mixlab.ops.prompt import DeltaLayout, delta_inputs, gate, place_heads
from mixlab.ops.rope import RopeTable
from mixlab.ops.swiglu import gated_product

WIDTHS = (16, 32, 64, 128, 256)
"""Heads that the kernels take: powers of two, which Triton's tiles are."""
PLANNED_FROM = 4096
"""Tokens from which on cuDNN's attention makes up for its plans. It makes one for every length and
number of prompts, which took 45 ms on an H200. Per layer it took 0.74 ms for 16,384 tokens where
FlashAttention took 1.5, and as long as that for 1,024."""


def attention_kernels(n_tokens: int) -> AbstractContextManager[None]:
    """PyTorch's kernels for prompts of so many tokens: those without plans for short ones."""
    if n_tokens >= PLANNED_FROM:
        return nullcontext()
    kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kinds)


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
        obstacle = flash_obstacle(
            step.empty.device, step.empty.dtype, k_dim=cfg.head_dim, v_dim=cfg.head_dim,
            has_prefix=False,
        )  # fmt: skip
        # Without it, heads that share keys might be a product of all pairs of tokens.
        self._takes_groups = cfg.window is None and obstacle is None

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
        table, scale = self._table(to.n_tokens), step.qk_scale
        place_heads(heads[:, :, :n_qkv], q, kv, table, scale, cfg.norm_eps)
        if to.last_only:
            heads = heads[:, -1:]
            o = self._last(q[:, -1], kv)
        elif self._takes_groups:
            q = q.transpose(1, 2)
            o = F.scaled_dot_product_attention(
                q, *kv, is_causal=True, scale=1.0, enable_gqa=cfg.kv_heads < cfg.n_heads
            )
            o = o.transpose(1, 2)
        else:
            k, v = (part.transpose(1, 2) for part in kv)  # (B, T, G, K)
            o = attention(
                q=q, k=k, v=v, scale=1.0, window=cfg.window, backend=cfg.portable().backend
            )  # (B, T, H, K)
        cache.settle(kv, to.row)
        o = o.reshape(-1, cfg.n_heads, cfg.head_dim)
        by = heads[:, :, n_qkv:].view(len(o), -1) if cfg.output_gate else None
        return step.output(o.flatten(1) if by is None else gate(o, by, "sigmoid", eps=None))

    def _last(self, q: Tensor, kv: Tensor) -> Tensor:
        """What the last queries (B, H, K) find, as in a step."""
        k, v = kv if self._step.cfg.window is None else kv[..., -self._step.cfg.window :, :]
        return attend(q.view(len(q), k.shape[1], -1, q.shape[-1]), k, v, None)

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


def _starts(widths: Iterable[int]) -> list[int]:
    """Where each of several parts beside each other begins."""
    return [0, *itertools.accumulate(widths)][:-1]
