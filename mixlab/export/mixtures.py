"""Qwen3-MoE, OLMoE and Mixtral: attention with a mixture of experts chosen by a softmax."""

from collections.abc import Iterator

from mixlab.core.config import Tree
from mixlab.export import attention
from mixlab.export.dense import attention_engines, mlp_misfits, mlp_moves
from mixlab.export.fields import Fields
from mixlab.export.moves import EXPERT_LEAVES, Move, experts, same
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
from mixlab.nn.channel_mixers.moe import MoEConfig
from mixlab.nn.language_model import LanguageModelConfig


def moe_of(layers: list[Layer]) -> list[MoEConfig]:
    """The mixtures of experts among these layers."""
    return [m for m in (layer.channel_mixer for layer in layers) if isinstance(m, MoEConfig)]


def expert_misfits(mixtures: list[MoEConfig], label: str) -> Iterator[str]:
    """What no stock mixture of experts has, and what must be the same in all layers."""
    for name in (
        "n_experts", "n_active_experts", "d_expert", "d_shared", "scores", "norm_topk_prob",
        "routed_scaling_factor",
    ):  # fmt: skip
        yield from everywhere([getattr(m, name) for m in mixtures], name, label)
    if any(m.activation != "swiglu" for m in mixtures):
        yield (
            f"activation = silu: the experts of {label} have three matrices, a gate among them "
            "(activation=swiglu)"
        )


def softmax_misfits(mixtures: list[MoEConfig], label: str) -> Iterator[str]:
    """For routers that choose by a softmax, without a bias."""
    for m in mixtures[:1]:
        if m.scores != "softmax":
            yield f"scores = {m.scores}: the router of {label} takes a softmax"
        if m.bias_update_rate is not None:
            yield f"bias_update_rate: the router of {label} has no selection bias"
        if m.routed_scaling_factor != 1.0:
            yield f"routed_scaling_factor = {m.routed_scaling_factor:g}: {label} has none"


def expert_moves(
    layer: Layer, *, part: str = "mlp", leaves: tuple[str, str, str] = EXPERT_LEAVES
) -> Iterator[Move]:
    """Router and routed experts; `leaves` name an expert's gate, up and down matrices."""
    ours, stock = f"blocks.{layer.index}.channel_mixer", f"model.layers.{layer.index}.{part}"
    yield same(f"{ours}.gate.weight", f"{stock}.gate.weight")
    n = layer.channel_mixer.n_experts
    yield from experts(f"{ours}.experts", f"{stock}.experts", n, leaves)


def dense_layers(layers: list[Layer]) -> list[int]:
    """The layers without experts."""
    return [x.index for x in layers if isinstance(x.channel_mixer, MLPConfig)]


def read_sparse_layers(fields: Fields, n_layers: int) -> list[bool]:
    """Which layers have experts, from `mlp_only_layers` and `decoder_sparse_step`."""
    step = fields.count("decoder_sparse_step", 1)
    dense = fields.take("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(type(i) is int and 0 <= i < n_layers for i in dense):
        fields.refuse("mlp_only_layers", dense, f"a list of layers, 0 to {n_layers - 1}")
    return [i not in dense and (i + 1) % step == 0 for i in range(n_layers)]


def read_moe(fields: Fields, *, width: str, norm_topk_default: bool) -> Tree:
    """Our mixture for the fields of a stock config; `width` names that of an expert."""
    n_experts = fields.take("num_experts", fields.take("num_local_experts", None))
    if isinstance(n_experts, bool) or not isinstance(n_experts, int) or n_experts < 1:
        fields.refuse("num_experts", n_experts, "a whole number from 1")
    tree = {
        "kind": "moe",
        "n_experts": n_experts,
        "n_active_experts": fields.count("num_experts_per_tok"),
        "d_expert": fields.count(width),
        "norm_topk_prob": fields.flag("norm_topk_prob", norm_topk_default),
    }
    if tree["n_active_experts"] > n_experts:
        fields.refuse("num_experts_per_tok", tree["n_active_experts"], f"at most {n_experts}")
    return tree


class Qwen3Moe(Target):
    label, model_type, architecture = "Qwen3-MoE", "qwen3_moe", "Qwen3MoeForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        for layer in layers:
            if layer.sequence_mixer.kind != "attention":
                yield f"{layer.sequence_mixer.kind}: every layer of {label} has attention"
        mixers, mixtures = attention.of(layers), moe_of(layers)
        if not mixtures:
            yield f"no experts: {label} has them at some layer"
        yield from attention.misfits(cfg, mixers, "head", label)
        yield from attention.gate_misfits(mixers, label)
        yield from attention.window_misfits(mixers, label, per_layer=False)
        yield from mlp_misfits(layers, label)
        yield from expert_misfits(mixtures, label)
        yield from softmax_misfits(mixtures, label)
        if any(m.n_shared_experts for m in mixtures):
            yield f"n_shared_experts: {label} has none"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixer, moe = attention.of(layers)[0], moe_of(layers)[0]
        widths = [x.channel_mixer.d_ff for x in layers if isinstance(x.channel_mixer, MLPConfig)]
        return common_config(self, cfg) | attention.stock_config(mixer) | {
            "intermediate_size": widths[0] if widths else moe.d_expert,
            "moe_intermediate_size": moe.d_expert,
            "num_experts": moe.n_experts,
            "num_experts_per_tok": moe.n_active_experts,
            "norm_topk_prob": moe.norm_topk_prob,
            "decoder_sparse_step": 1,
            "mlp_only_layers": dense_layers(layers),
            "use_sliding_window": mixer.window is not None,
            "sliding_window": mixer.window,
            "router_aux_loss_coef": moe.aux_loss_weight,
        }  # fmt: skip

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        yield from attention.moves(cfg, layer, zero_o_bias=True)
        is_sparse = isinstance(layer.channel_mixer, MoEConfig)
        yield from expert_moves(layer) if is_sparse else mlp_moves(layer)

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        mixer = attention.read(fields, tree, "head", may_lack=("head_dim",))
        mixer["bias"] = fields.flag("attention_bias", False)
        fields.take("max_window_layers", None)  # of no effect in this class
        uses, window = fields.flag("use_sliding_window", False), fields.take("sliding_window", None)
        if uses and (type(window) is not int or window < 1):
            fields.refuse("sliding_window", window, "a number of tokens")
        if uses:
            mixer["window"] = window
        moe = read_moe(fields, width="moe_intermediate_size", norm_topk_default=False)
        d_ff = fields.count("intermediate_size", 1)
        sparse = read_sparse_layers(fields, tree["n_layers"])
        blocks = {
            "sparse": {"sequence_mixer": mixer, "channel_mixer": moe},
            "dense": {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "d_ff": d_ff}},
        }
        return tree | named_blocks(["sparse" if s else "dense" for s in sparse], blocks)

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        layers = layers_of(cfg)
        mixer = attention.of(layers)[0]
        answers = attention_engines(cfg, mixer.head_dim, mixer.window is not None)
        if not dense_layers(layers):
            return answers
        why = "its loader expects experts in every layer"
        return (*answers[:3], Answer("llama.cpp", "no", why))


class Olmoe(Target):
    label, model_type, architecture = "OLMoE", "olmoe", "OlmoeForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        yield from other_kinds(layers, ("attention", "moe"), label)
        mixers, mixtures = attention.of(layers), moe_of(layers)
        yield from attention.misfits(cfg, mixers, "full", label)
        yield from attention.gate_misfits(mixers, label)
        if any(m.window is not None for m in mixers):
            yield f"window: the attention of {label} sees all earlier tokens"
        for mixer in mixers[:1]:
            if mixer.n_heads * mixer.head_dim != cfg.d_model:
                yield f"n_heads * head_dim is not d_model = {cfg.d_model}, as {label} has it"
        yield from expert_misfits(mixtures, label)
        yield from softmax_misfits(mixtures, label)
        if any(m.n_shared_experts for m in mixtures):
            yield f"n_shared_experts: {label} has none"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixer, moe = attention.of(layers)[0], moe_of(layers)[0]
        tree = common_config(self, cfg) | attention.stock_config(mixer)
        del tree["head_dim"]  # d_model / n_heads always
        return tree | {
            "intermediate_size": moe.d_expert,
            "num_experts": moe.n_experts,
            "num_experts_per_tok": moe.n_active_experts,
            "norm_topk_prob": moe.norm_topk_prob,
            "clip_qkv": None,
            "router_aux_loss_coef": moe.aux_loss_weight,
        }

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        yield from attention.moves(cfg, layer, zero_o_bias=True)
        yield from expert_moves(layer)

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        mixer = attention.read(
            fields,
            tree,
            "full",
            may_lack=("head_dim", "num_key_value_heads"),
        )
        if mixer["n_heads"] * mixer["head_dim"] != tree["d_model"]:
            fields.refuse("head_dim", mixer["head_dim"], "hidden_size / num_attention_heads")
        mixer["bias"] = fields.flag("attention_bias", False)
        fields.must("clip_qkv", why="mixlab does not clip queries, keys and values")
        moe = read_moe(fields, width="intermediate_size", norm_topk_default=False)
        return tree | named_blocks(
            ["sparse"] * tree["n_layers"],
            {"sparse": {"sequence_mixer": mixer, "channel_mixer": moe}},
        )

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        return attention_engines(cfg, attention.of(layers_of(cfg))[0].head_dim, has_window=False)


class Mixtral(Target):
    label, model_type, architecture = "Mixtral", "mixtral", "MixtralForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        yield from other_kinds(layers, ("attention", "moe"), label)
        mixers, mixtures = attention.of(layers), moe_of(layers)
        yield from attention.misfits(cfg, mixers, "none", label)
        yield from attention.gate_misfits(mixers, label)
        yield from attention.window_misfits(mixers, label, per_layer=False)
        if any(m.bias for m in mixers):
            yield f"bias = true: the attention of {label} has none"
        yield from expert_misfits(mixtures, label)
        yield from softmax_misfits(mixtures, label)
        if any(m.n_shared_experts for m in mixtures):
            yield f"n_shared_experts: {label} has none"
        # One expert of one has the weight 1 either way.
        if any(not m.norm_topk_prob and m.n_experts > 1 for m in mixtures):
            yield f"norm_topk_prob = false: {label} divides the chosen scores by their sum"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixer, moe = attention.of(layers)[0], moe_of(layers)[0]
        tree = common_config(self, cfg) | attention.stock_config(mixer)
        del tree["attention_bias"]
        return tree | {
            "intermediate_size": moe.d_expert,
            "num_local_experts": moe.n_experts,
            "num_experts_per_tok": moe.n_active_experts,
            "sliding_window": mixer.window,
            "router_aux_loss_coef": moe.aux_loss_weight,
        }

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        yield from attention.moves(cfg, layer)
        yield from expert_moves(layer, part="block_sparse_moe", leaves=("w1", "w3", "w2"))

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        mixer = attention.read(fields, tree, "none", theta=1e6, may_lack=("head_dim",))
        fields.must("attention_bias", False, why="its attention has no biases")
        window = fields.take("sliding_window", None)
        if window is not None and (type(window) is not int or window < 1):
            fields.refuse("sliding_window", window, "a number of tokens")
        mixer["window"] = window
        moe = read_moe(fields, width="intermediate_size", norm_topk_default=True)
        if moe["n_experts"] == 1:
            moe["norm_topk_prob"] = False  # the only weight is 1 as it is
        return tree | named_blocks(
            ["sparse"] * tree["n_layers"],
            {"sparse": {"sequence_mixer": mixer, "channel_mixer": moe}},
        )

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        mixer = attention.of(layers_of(cfg))[0]
        return attention_engines(cfg, mixer.head_dim, mixer.window is not None)
