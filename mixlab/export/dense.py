"""Llama, Qwen2 and Qwen3: attention and a gated feed-forward layer in every block.

They differ in little: Qwen3 has a norm on the queries and keys of each head, Qwen2 biases on
queries, keys and values, both take windows at some layers; Llama has none of these.
"""

from collections.abc import Iterator
from typing import ClassVar

from mixlab.core.config import Tree
from mixlab.export import attention
from mixlab.export.fields import Fields
from mixlab.export.moves import Move, constant, same
from mixlab.export.target import (
    Answer,
    Layer,
    Target,
    common_config,
    everywhere,
    layers_of,
    named_blocks,
    other_kinds,
    read_common,
)
from mixlab.nn.channel_mixers.mlp import MLPConfig
from mixlab.nn.language_model import LanguageModelConfig

MLP_LEAVES = ("gate_proj", "up_proj", "down_proj")


def mlp_moves(layer: Layer) -> Iterator[Move]:
    """The feed-forward layer, by other names."""
    for leaf in MLP_LEAVES:
        yield same(
            f"blocks.{layer.index}.channel_mixer.{leaf}.weight",
            f"model.layers.{layer.index}.mlp.{leaf}.weight",
        )


def mlp_misfits(layers: list[Layer], label: str) -> Iterator[str]:
    """One width for all feed-forward layers."""
    widths = [m.d_ff for m in (x.channel_mixer for x in layers) if isinstance(m, MLPConfig)]
    yield from everywhere(widths, "d_ff", label)


class Dense(Target):
    """What the three have in common."""

    qk_norm: ClassVar[str] = "none"
    windows: ClassVar[bool] = False
    may_lack: ClassVar[tuple[str, ...]] = ()

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        yield from other_kinds(layers, ("attention", "mlp"), label)
        mixers = attention.of(layers)
        yield from attention.misfits(cfg, mixers, self.qk_norm, label)
        yield from attention.gate_misfits(mixers, label)
        yield from mlp_misfits(layers, label)
        if self.windows:
            yield from attention.window_misfits(mixers, label, per_layer=True)
        elif any(m.window is not None for m in mixers):
            yield f"window: the attention of {label} sees all earlier tokens"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixers = attention.of(layers)
        tree = common_config(self, cfg) | attention.stock_config(mixers[0])
        tree["intermediate_size"] = layers[0].channel_mixer.d_ff
        if not self.windows:
            return tree
        window = next((m.window for m in mixers if m.window is not None), None)
        kinds = ["sliding_attention" if m.window else "full_attention" for m in mixers]
        return tree | {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": cfg.n_layers,
            "layer_types": kinds,
        }

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        yield from attention.moves(cfg, layer, zero_o_bias=True)
        yield from mlp_moves(layer)

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        mixer = attention.read(fields, tree, self.qk_norm, may_lack=self.may_lack)
        mixer["bias"] = self.read_bias(fields)
        channel = {"kind": "mlp", "d_ff": fields.count("intermediate_size")}
        windows = [None] * tree["n_layers"]
        if self.windows:
            windows = attention.read_windows(fields, tree["n_layers"])
        window = next((w for w in windows if w), None)
        blocks = {
            "full": {"sequence_mixer": mixer, "channel_mixer": channel},
            "sliding": {"sequence_mixer": mixer | {"window": window}, "channel_mixer": channel},
        }
        return tree | named_blocks(["sliding" if w else "full" for w in windows], blocks)

    def read_bias(self, fields: Fields) -> bool:
        return fields.flag("attention_bias", False)

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        mixers = attention.of(layers_of(cfg))
        return attention_engines(cfg, mixers[0].head_dim, any(m.window for m in mixers))


def attention_engines(
    cfg: LanguageModelConfig, head_dim: int, has_window: bool
) -> tuple[Answer, ...]:
    """The answers for plain attention, which all four engines have for all of these models."""
    served = served_heads(head_dim)
    gguf = Answer("llama.cpp", "yes", "")
    if has_window:
        gguf = Answer("llama.cpp", "no", "its graph for this model has no windows")
    return (
        Answer("transformers", "yes", ""),
        served._replace(engine="vLLM"),
        served._replace(engine="SGLang"),
        gguf,
    )


def served_heads(head_dim: int) -> Answer:
    """The head sizes that the attention kernels of both servers take."""
    if head_dim in (64, 96, 128, 192, 256):
        return Answer("vLLM", "yes", "")
    return Answer(
        "vLLM", "untried", f"few of its kernels take heads of {head_dim}; 64 and 128 are safe"
    )


class Llama(Dense):
    label, model_type, architecture = "Llama", "llama", "LlamaForCausalLM"
    may_lack = ("head_dim", "num_key_value_heads")

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        yield from super().misfits(cfg)
        for mixer in attention.of(layers_of(cfg))[:1]:
            if cfg.d_model % mixer.n_heads:
                yield (
                    f"d_model = {cfg.d_model} is no multiple of n_heads = {mixer.n_heads}, as "
                    f"{self.label} wants it"
                )

    def our_model(self, fields: Fields) -> Tree:
        fields.must("rope_interleaved", False, why="mixlab's attention turns halves of a head")
        return super().our_model(fields)


class Qwen2(Dense):
    label, model_type, architecture = "Qwen2", "qwen2", "Qwen2ForCausalLM"
    windows, may_lack = True, ("head_dim",)

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        yield from super().misfits(cfg)
        mixers = attention.of(layers_of(cfg))
        if not any(m.bias or m.window for m in mixers):
            yield f"neither bias nor window: what {self.label} has beyond Llama"
        for mixer in mixers[:1]:
            if mixer.head_dim * mixer.n_heads != cfg.d_model:  # some loaders divide, unasked
                yield f"n_heads * head_dim is not d_model = {cfg.d_model}, as {self.label} has it"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        tree = super().stock_config(cfg)
        del tree["attention_bias"]  # its biases are no setting
        return tree

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        mixer = layer.sequence_mixer
        yield from attention.moves(cfg, layer)
        if not mixer.bias:  # it has them always
            widths = {"q_proj": mixer.n_heads, "k_proj": mixer.kv_heads, "v_proj": mixer.kv_heads}
            for name, heads in widths.items():
                stock = f"model.layers.{layer.index}.self_attn.{name}.bias"
                yield constant(stock, (heads * mixer.head_dim,))
        yield from mlp_moves(layer)

    def read_bias(self, fields: Fields) -> bool:
        return True


class Qwen3(Dense):
    label, model_type, architecture = "Qwen3", "qwen3", "Qwen3ForCausalLM"
    qk_norm, windows = "head", True
