"""SwiGLU feed-forward layer.

Source: Shazeer, "GLU Variants Improve Transformer" [arXiv:2002.05202].
Shapes: B batch, T tokens, D d_model.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from mixlab.nn.channel_mixers.base import ChannelMixer, ChannelMixerConfig, ChannelOutput
from mixlab.nn.linear import Linear
from mixlab.ops.dtypes import autocast_once
from mixlab.ops.swiglu import swiglu


class MLPConfig(ChannelMixerConfig):
    """down(silu(gate(x)) * up(x))."""

    kind: Literal["mlp"] = "mlp"
    d_ff: PositiveInt
    """Width between the projections."""

    def shrunk(self) -> "MLPConfig":
        return self.model_copy(update={"d_ff": min(self.d_ff, 128)})

    def build(self, d_model: int) -> "MLP":
        return MLP(self, d_model)

    def n_params(self, d_model: int) -> int:
        return 3 * d_model * self.d_ff

    def flops_per_token(self, d_model: int) -> float:
        return 2 * self.n_params(d_model)


class MLP(ChannelMixer):
    """Gated feed-forward layer with the SiLU gate of Llama and Qwen."""

    def __init__(self, cfg: MLPConfig, d_model: int) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, cfg.d_ff)
        self.up_proj = Linear(d_model, cfg.d_ff)
        self.down_proj = Linear(cfg.d_ff, d_model)

    def forward(self, x: Tensor) -> ChannelOutput:
        h = swiglu(autocast_once(x), self.gate_proj.weight, self.up_proj.weight)
        return ChannelOutput(self.down_proj(h), None, {})
