"""Stock weights of a Gated DeltaNet layer by our names."""

from mixlab.export import TARGETS
from mixlab.export.moves import to_ours
from mixlab.export.target import Layer
from mixlab.nn.channel_mixers.mlp import MLPConfig
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig


def split_stock(tensors: dict, *, n_keys: int, n_heads: int, k_dim: int) -> dict:
    """Stock weights (or gradients) by our names, from the fused or from the flat layout."""
    mixer = GatedDeltaNetConfig(n_heads=n_keys, n_v_heads=n_heads, head_dim=k_dim)
    target = TARGETS["qwen3_next" if "in_proj_qkvz.weight" in tensors else "qwen3_5_text"]
    layer = Layer(0, "linear", mixer, MLPConfig(d_ff=1))
    moves = [m for m in target.layer_moves(None, layer) if ".linear_attn." in m.stock[0]]
    named = {f"model.layers.0.linear_attn.{name}": t for name, t in tensors.items()}
    prefix = "blocks.0.sequence_mixer."
    return {name.removeprefix(prefix): t for name, t in to_ours(named, moves).items()}
