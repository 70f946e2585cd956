"""DeepSeek-V3: latent attention, with a feed-forward layer or experts chosen by sigmoid scores."""

from collections.abc import Iterator

from mixlab.core.config import Tree
from mixlab.export.dense import mlp_misfits, mlp_moves
from mixlab.export.fields import Fields, Rope
from mixlab.export.mixtures import dense_layers, expert_misfits, expert_moves, moe_of
from mixlab.export.moves import Move, constant, same
from mixlab.export.target import (
    Answer,
    Layer,
    Target,
    common_config,
    everywhere,
    layers_of,
    named_blocks,
    read_common,
)
from mixlab.nn.channel_mixers.mlp import MLPConfig
from mixlab.nn.channel_mixers.moe import MoEConfig
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.sequence_mixers.mla import MLAConfig

LATENT_EPS = 1e-6
"""The stock class has it fixed in the norms on the latents."""
SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class DeepseekV3(Target):
    label, model_type, architecture = "DeepSeek-V3", "deepseek_v3", "DeepseekV3ForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        for layer in layers:
            if layer.sequence_mixer.kind != "mla":
                yield f"{layer.sequence_mixer.kind}: every layer of {label} has latent attention"
        mixers = [x.sequence_mixer for x in layers if isinstance(x.sequence_mixer, MLAConfig)]
        for name in ("n_heads", *SIZES, "rope_theta", "bias"):
            yield from everywhere([getattr(m, name) for m in mixers], name, label)
        for mixer in mixers:
            if mixer.norm_eps != LATENT_EPS:
                yield f"norm_eps = {mixer.norm_eps:g}: {label} has {LATENT_EPS:g} on its latents"
        dense = dense_layers(layers)
        if dense != list(range(len(dense))):
            yield f"pattern: in {label} the layers without experts come first"
        yield from mlp_misfits(layers, label)
        yield from self._expert_misfits(moe_of(layers))

    def _expert_misfits(self, mixtures: list[MoEConfig]) -> Iterator[str]:
        yield from expert_misfits(mixtures, self.label)
        for m in mixtures[:1]:
            if m.scores != "sigmoid":
                yield f"scores = {m.scores}: {self.label} chooses experts by sigmoid scores"
            if m.shared_expert_gate:
                yield f"shared_expert_gate = true: the shared expert of {self.label} has no gate"
            if m.n_experts < 2:
                yield f"n_experts = 1: {self.label} compares the best two of each group"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixer, mixtures = layers[0].sequence_mixer, moe_of(layers)
        widths = [x.channel_mixer.d_ff for x in layers if isinstance(x.channel_mixer, MLPConfig)]
        tree = common_config(self, cfg) | {name: getattr(mixer, name) for name in SIZES} | {
            "num_attention_heads": mixer.n_heads,
            "num_key_value_heads": mixer.n_heads,
            "attention_bias": mixer.bias,
            "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
            "rope_interleave": True,
            "first_k_dense_replace": len(dense_layers(layers)),
            "num_nextn_predict_layers": 0,  # by default the class would add one
            "n_group": 1,
            "topk_group": 1,
        }  # fmt: skip
        if mixtures:
            tree |= _router_fields(mixtures[0])
        else:  # sizes of experts that no layer has
            tree |= _router_fields(MoEConfig(n_experts=2, n_active_experts=2, d_expert=1))
        return tree | {"intermediate_size": widths[0] if widths else mixtures[0].d_expert}

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        ours, stock = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        for leaf in _attention_leaves(layer.sequence_mixer):
            yield same(f"{ours}.sequence_mixer.{leaf}", f"{stock}.self_attn.{leaf}")
        moe = layer.channel_mixer
        if not isinstance(moe, MoEConfig):
            yield from mlp_moves(layer)
            return
        yield from expert_moves(layer)
        bias = "gate.e_score_correction_bias"
        if moe.bias_update_rate is None:
            yield constant(f"{stock}.mlp.{bias}", (moe.n_experts,))
        else:
            yield same(f"{ours}.channel_mixer.{bias}", f"{stock}.mlp.{bias}")
        for leaf in ("gate_proj", "up_proj", "down_proj"):
            name = f"shared_experts.{leaf}.weight"
            if moe.n_shared_experts:
                yield same(f"{ours}.channel_mixer.{name}", f"{stock}.mlp.{name}")
            else:  # a shared expert that adds nothing: every engine takes one
                shape = (moe.d_expert, cfg.d_model)
                yield constant(f"{stock}.mlp.{name}", shape if leaf != "down_proj" else shape[::-1])

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        mixer = self._read_attention(fields)
        fields.must("num_nextn_predict_layers", 0, why="mixlab predicts one token at a time")
        fields.must("num_mtp_layers", 0, why="mixlab predicts one token at a time")
        fields.must("moe_layer_freq", 1, why="experts begin at one layer and stay")
        for name, default in (("n_group", 8), ("topk_group", 4)):
            if (groups := fields.count(name, default)) != 1:
                fields.refuse(name, groups, "1, since mixlab's router has no groups of experts")
        fields.must("scoring_func", "sigmoid", why="that is the class's score")
        fields.must("topk_method", "noaux_tc", why="that is the class's way to choose")
        n_dense = fields.count("first_k_dense_replace", 3, least=0)
        moe = {
            "kind": "moe",
            "n_experts": fields.count("n_routed_experts", 256),
            "n_active_experts": fields.count("num_experts_per_tok", 8),
            "d_expert": fields.count("moe_intermediate_size", 2048),
            "n_shared_experts": fields.count("n_shared_experts", 1),
            "scores": "sigmoid",
            "norm_topk_prob": fields.flag("norm_topk_prob", True),
            "routed_scaling_factor": fields.number("routed_scaling_factor", 2.5),
            "aux_loss_weight": 0.0,
            "bias_update_rate": 0.0,  # the bias stays as it was loaded
        }
        d_ff = fields.count("intermediate_size")
        kinds = ["dense" if i < n_dense else "sparse" for i in range(tree["n_layers"])]
        return tree | named_blocks(
            kinds,
            {
                "dense": {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "d_ff": d_ff}},
                "sparse": {"sequence_mixer": mixer, "channel_mixer": moe},
            },
        )

    def _read_attention(self, fields: Fields) -> Tree:
        heads = fields.count("num_attention_heads")
        kv_heads = fields.count("num_key_value_heads", heads)
        if kv_heads != heads:
            fields.refuse("num_key_value_heads", kv_heads, f"num_attention_heads = {heads}")
        rope = Rope(fields)
        fields.must("rope_interleave", True, why="mixlab's latent attention turns pairs")
        rank = fields.take("q_lora_rank", None)
        if rank is not None and (type(rank) is not int or rank < 1):
            fields.refuse("q_lora_rank", rank, "a whole number from 1, or null")
        tree = {
            "kind": "mla", "n_heads": heads, "q_lora_rank": rank,
            "kv_lora_rank": fields.count("kv_lora_rank", 512),
            "qk_nope_head_dim": fields.count("qk_nope_head_dim", 128, least=0),
            "qk_rope_head_dim": fields.count("qk_rope_head_dim", 64, least=2),
            "v_head_dim": fields.count("v_head_dim", 128),
            "rope_theta": rope.theta, "bias": fields.flag("attention_bias", False),
            "norm_eps": LATENT_EPS,
        }  # fmt: skip
        if rope.frac != 1.0:
            fields.refuse("partial_rotary_factor", rope.frac, "1: it has no effect there")
        for name in ("head_dim", "qk_head_dim"):  # worked out from the others
            turned = tree["qk_rope_head_dim"]
            fields.must(name, turned, turned + tree["qk_nope_head_dim"], why="it is worked out")
        return tree

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        mixer = layers_of(cfg)[0].sequence_mixer
        width = mixer.kv_lora_rank + mixer.qk_rope_head_dim
        yes = Answer("transformers", "yes", "")
        if mixer.qk_nope_head_dim == 0:
            why = "its kernels expect content channels (qk_nope_head_dim above 0)"
            others = [Answer(e, "no", why) for e in ("vLLM", "SGLang", "llama.cpp")]
            return (yes, *others)
        served = Answer("vLLM", "yes", "")
        if width != 576:
            served = Answer(
                "vLLM", "untried",
                f"latent + rotary = {width}: its fast kernels take 576; set VLLM_MLA_DISABLE=1",
            )  # fmt: skip
        if abs(cfg.norm_eps - LATENT_EPS) > 1e-12:
            served = Answer("vLLM", "no", "it uses the model's norm_eps on the latents too")
        other = Answer("SGLang", "yes" if width == 576 else "untried", "")
        if width != 576:
            other = other._replace(why=f"latent + rotary = {width}: its fast kernels take 576")
        gguf = Answer("llama.cpp", "untried", "its deepseek2 graph was made for the large models")
        return (yes, served, other, gguf)


def _router_fields(moe: MoEConfig) -> Tree:
    return {
        "moe_intermediate_size": moe.d_expert,
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active_experts,
        "n_shared_experts": max(1, moe.n_shared_experts),
        "norm_topk_prob": moe.norm_topk_prob,
        "routed_scaling_factor": moe.routed_scaling_factor,
    }


def _attention_leaves(mixer: MLAConfig) -> Iterator[str]:
    if mixer.q_lora_rank is None:
        yield "q_proj.weight"
    else:
        yield from ("q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight")
        if mixer.bias:
            yield "q_a_proj.bias"
    yield from ("kv_a_proj_with_mqa.weight", "kv_a_layernorm.weight", "kv_b_proj.weight")
    yield "o_proj.weight"
    if mixer.bias:
        yield from ("kv_a_proj_with_mqa.bias", "o_proj.bias")
