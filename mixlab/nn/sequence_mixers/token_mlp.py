"""A gated MLP along the positions of a row: the token mixer of MLP-Mixer and of TRM.

    y = down(silu(gate(x^T)) * up(x^T))^T

Source: MLP-Mixer [arXiv:2105.01601]; with a SwiGLU in TRM [arXiv:2510.04871].
Cost:   O(T) time per token with weights of its own for every position, so rows have one length.
Shapes: B batch, T positions, D d_model.
"""

from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from mixlab.core.errors import Rule
from mixlab.nn.linear import Linear
from mixlab.nn.sequence_mixers.base import MixerOutput, SequenceMixer, SequenceMixerConfig
from mixlab.ops.dtypes import autocast_once
from mixlab.ops.packing import Packing

ALIGNMENT = 8
"""Positions that rows are padded to on a GPU: 16 bytes in half precision."""


def refuse_token_mlp() -> NoReturn:
    """Why this mixer has no place in a causal model."""
    raise Rule(
        "kind", "token_mlp",
        "a causal mixer; in a token-mixing MLP every token sees later ones",
        "It may stand in a run of kind refine, whose model answers all positions at once.",
    )  # fmt: skip


class TokenMLPConfig(SequenceMixerConfig):
    """Gated MLP over the positions of a row; every token sees every other, so never causal."""

    kind: Literal["token_mlp"] = "token_mlp"
    d_ff: PositiveInt
    """Width between the projections."""

    def check(self, d_model: int) -> None:
        refuse_token_mlp()

    def shrunk(self, len_frac: float) -> "TokenMLPConfig":
        return self.model_copy(update={"d_ff": min(self.d_ff, 64)})


class TokenMLP(SequenceMixer):
    """The mixer for rows of `length` positions."""

    def __init__(self, cfg: TokenMLPConfig, length: int) -> None:
        super().__init__()
        self.gate_proj = Linear(length, cfg.d_ff)
        self.up_proj = Linear(length, cfg.d_ff)
        self.down_proj = Linear(cfg.d_ff, length)

    def forward(self, x: Tensor, state: None = None, packing: Packing | None = None) -> MixerOutput:
        assert state is None and packing is None, "a row is whole and by itself"
        x, length = autocast_once(x), x.shape[1]
        # Tensor cores want rows of whole 16 bytes; a compiled net pads where it writes x anyway.
        pad = -length % ALIGNMENT if x.is_cuda else 0
        if pad:
            x = F.pad(x, (0, 0, 0, pad))
        # Products with the positions in the middle, so that nothing is transposed in memory.
        gate = torch.bmm(_each(F.pad(self.gate_proj.weight, (0, pad)), len(x)), x)  # (B, d_ff, D)
        up = torch.bmm(_each(F.pad(self.up_proj.weight, (0, pad)), len(x)), x)
        down = _each(F.pad(self.down_proj.weight, (0, 0, 0, pad)), len(x))
        return MixerOutput(torch.bmm(down, F.silu(gate) * up)[:, :length], None)


def _each(weight: Tensor, n: int) -> Tensor:
    """The same matrix n times, without copies."""
    return autocast_once(weight).expand(n, -1, -1)
