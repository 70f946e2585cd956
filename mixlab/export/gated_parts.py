"""What Qwen3.5 and Qwen3-Next share besides Gated DeltaNet: gates, and which layer is what."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixlab.core.config import Tree
from mixlab.export import attention
from mixlab.export.fields import Fields
from mixlab.export.moves import Move, constant, offset, same, scaled
from mixlab.export.target import Layer
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig

DEFAULT_INTERVAL = 4
KINDS = ("linear_attention", "full_attention")


def delta_of(layers: list[Layer]) -> list[GatedDeltaNetConfig]:
    """The Gated DeltaNet mixers among these layers."""
    return [m for m in (x.sequence_mixer for x in layers) if isinstance(m, GatedDeltaNetConfig)]


def interval_of(layers: list[Layer]) -> int | None:
    """k if attention stands at every k-th layer, the last of its group; None if it does not."""
    at = [x.index for x in layers if isinstance(x.sequence_mixer, AttentionConfig)]
    if not at:
        return None
    k = at[0] + 1
    return k if at == list(range(k - 1, len(layers), k)) else None


def attention_fields(layers: list[Layer]) -> Tree:
    """The fields about attention, also where no layer has it."""
    mixers = attention.of(layers)
    mixer = mixers[0] if mixers else AttentionConfig(n_heads=1, head_dim=64)
    tree = attention.stock_config(mixer)
    factor = mixer.rope_dim / mixer.head_dim
    # Readers look for it in one place or the other, and assume a quarter where it is absent.
    tree["partial_rotary_factor"] = tree["rope_parameters"]["partial_rotary_factor"] = factor
    return tree


def gated_attention_moves(layer: Layer) -> Iterator[Move]:
    """Queries and gates in one projection, head by head; norms as w - 1."""
    mixer = layer.sequence_mixer
    ours, stock = f"blocks.{layer.index}.sequence_mixer", f"model.layers.{layer.index}.self_attn"
    for name in ("k_proj", "v_proj"):
        yield same(f"{ours}.{name}.weight", f"{stock}.{name}.weight")
    for name in ("q_norm", "k_norm"):
        yield offset(f"{ours}.{name}.weight", f"{stock}.{name}.weight")

    def interleave(q: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        pair = [t.unflatten(0, (mixer.n_heads, mixer.head_dim)) for t in (q, gate)]
        return (torch.stack(pair, dim=1).flatten(0, 2),)

    def part(t: Tensor) -> tuple[Tensor, ...]:
        pair = t.unflatten(0, (mixer.n_heads, 2, mixer.head_dim)).unbind(1)
        return tuple(x.flatten(0, 1) for x in pair)

    q, o, fused = f"{ours}.q_proj.weight", "o_proj.weight", (f"{stock}.q_proj.weight",)
    if mixer.output_gate:
        yield Move((q, f"{ours}.g_proj.weight"), fused, interleave, part)
        yield same(f"{ours}.{o}", f"{stock}.{o}")
    else:
        yield Move((q,), fused, lambda t: interleave(t, torch.zeros_like(t)))
        yield scaled(f"{ours}.{o}", f"{stock}.{o}", 2)


def shared_expert_moves(cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
    """The shared expert and its gate, which are there whether or not we have them."""
    moe = layer.channel_mixer
    ours, stock = f"blocks.{layer.index}.channel_mixer", f"model.layers.{layer.index}.mlp"
    gate = f"{stock}.shared_expert_gate.weight"
    leaves = {"gate_proj": (0, cfg.d_model), "up_proj": (0, cfg.d_model)}
    leaves["down_proj"] = (cfg.d_model, 0)
    if not moe.n_shared_experts:
        yield constant(gate, (1, cfg.d_model))
    elif moe.shared_expert_gate:
        yield same(f"{ours}.shared_expert_gate.weight", gate)
    else:  # a gate that stands at a half, and twice the output
        yield constant(gate, (1, cfg.d_model))
    for leaf, nothing in leaves.items():
        a, b = f"{ours}.shared_experts.{leaf}.weight", f"{stock}.shared_expert.{leaf}.weight"
        if not moe.n_shared_experts:
            yield constant(b, nothing)
        elif leaf == "down_proj" and not moe.shared_expert_gate:
            yield scaled(a, b, 2)
        else:
            yield same(a, b)


def read_kinds(fields: Fields, n_layers: int) -> list[str]:
    """Which layers are linear and which are full."""
    interval = fields.take("full_attention_interval", None)
    kinds = fields.layers("layer_types", n_layers, KINDS)
    if interval is not None and (type(interval) is not int or interval < 1):
        fields.refuse("full_attention_interval", interval, "a whole number from 1")
    if interval is None and kinds is not None:
        return kinds
    step = interval or DEFAULT_INTERVAL
    dealt = [KINDS[(i + 1) % step == 0] for i in range(n_layers)]
    if kinds is not None and kinds != dealt:
        fields.refuse("full_attention_interval", interval, "what layer_types says")
    return dealt
