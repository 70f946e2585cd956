"""Sequence mixers for rows that are seen as a whole: every position may use every other.

Attention leaves out its mask and the token-mixing MLP never had one. A mixer that only runs
forwards is run in both directions with the same weights, and the two results are averaged.
Shapes: B batch, T positions, D d_model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.core.errors import Rule
from mixlab.core.registry import Registry
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS
from mixlab.nn.sequence_mixers.attention import Attention, AttentionConfig
from mixlab.nn.sequence_mixers.base import MixerOutput, SequenceMixer, SequenceMixerConfig
from mixlab.nn.sequence_mixers.token_mlp import TokenMLP, TokenMLPConfig
from mixlab.ops.dtypes import autocast_once
from mixlab.ops.packing import Packing
from mixlab.ops.row_attention import obstacle, row_attention

WHOLE_ROW_MIXERS: Registry[SequenceMixerConfig] = Registry(
    {**{name: SEQUENCE_MIXERS[name] for name in SEQUENCE_MIXERS}, "token_mlp": TokenMLPConfig}
)


class BothWays(SequenceMixer):
    """A causal mixer run forwards and backwards over the row with the same weights."""

    def __init__(self, mixer: SequenceMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, state: None = None, packing: Packing | None = None) -> MixerOutput:
        assert state is None and packing is None, "a row is whole and by itself"
        forwards = self.mixer(x).y
        backwards = self.mixer(x.flip(1)).y.flip(1)
        return MixerOutput((forwards + backwards) / 2, None)


class WholeRowAttention(Attention):
    """Attention from every position to every other; on a GPU in one kernel where rows are short."""

    def forward(self, x: Tensor, state: None = None, packing: Packing | None = None) -> MixerOutput:
        x = autocast_once(x)
        if row_backend(self.cfg, x.shape[1], x.device, x.dtype) != "rows":
            return super().forward(x, state, packing)
        weights = [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]
        qkv = F.linear(x, torch.cat(weights)).unflatten(-1, (3, self.cfg.n_heads, -1))
        o = row_attention(
            qkv, table=None if self.rotary is None else self.rotary(0, x),
            scale=self.cfg.head_dim**-0.5, backend="triton",
        )  # fmt: skip
        return MixerOutput(self.o_proj(o.flatten(-2)), None)


def row_backend(cfg: AttentionConfig, length: int, device: torch.device, dtype: torch.dtype) -> str:
    """What runs attention in rows of `length`, where the config leaves it open: `rows`, the one
    kernel of ops/row_attention, if that fits, else `sdpa`."""
    if cfg.backend != "auto":
        return cfg.backend
    is_plain = (
        cfg.kv_heads == cfg.n_heads
        and cfg.rope_dim in (0, cfg.head_dim)
        and cfg.qk_norm == "none"
        and not cfg.output_gate
        and not cfg.bias
    )
    found = obstacle(device, dtype, length=length, head_dim=cfg.head_dim)
    return "rows" if is_plain and found is None else "sdpa"


def check_whole_row(cfg: SequenceMixerConfig, d_model: int) -> None:
    """Raise `Rule` where the settings do not fit rows that are seen as a whole."""
    if isinstance(cfg, TokenMLPConfig):
        return
    cfg.check(d_model)
    if isinstance(cfg, AttentionConfig) and cfg.window is not None:
        raise Rule(
            "window", cfg.window, "no window: every position of a puzzle sees every other",
            "Leave it out.",
        )  # fmt: skip


def build_whole_row(cfg: SequenceMixerConfig, d_model: int, length: int) -> SequenceMixer:
    """The mixer for rows of `length` positions."""
    if isinstance(cfg, TokenMLPConfig):
        return TokenMLP(cfg, length)
    if isinstance(cfg, AttentionConfig):
        return WholeRowAttention(cfg, d_model, causal=False, length=length)
    return BothWays(cfg.build(d_model))


def whole_row_params(cfg: SequenceMixerConfig, d_model: int, length: int) -> int:
    """Trainable numbers."""
    return 3 * length * cfg.d_ff if isinstance(cfg, TokenMLPConfig) else cfg.n_params(d_model)


def whole_row_flops_per_token(cfg: SequenceMixerConfig, d_model: int, length: int) -> float:
    """Forward FLOPs of the matrix products per position; a multiply-add counts 2."""
    if isinstance(cfg, TokenMLPConfig):
        return 6 * cfg.d_ff * d_model
    causal = cfg.flops_per_token(d_model, length)
    if not isinstance(cfg, AttentionConfig):
        return 2 * causal
    unseen_keys = length - (length + 1) / 2  # that causality would have hidden, on average
    return causal + 4 * cfg.n_heads * cfg.head_dim * unseen_keys
