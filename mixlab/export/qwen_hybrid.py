"""Qwen3.5 (text) and Qwen3-Next: Gated DeltaNet and gated attention, dense or with experts.

Their norms multiply by 1 + w. Their attention has an output gate, and its queries and gates share a
projection, head by head; attention without a gate is written as one whose gate stands at a half and
whose output is doubled, which is the same function exactly. Likewise the shared expert's gate.

Qwen3.5 keeps the projections of Gated DeltaNet apart, Qwen3-Next packs them key head by key head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixlab.core.config import Tree
from mixlab.export import attention
from mixlab.export import gated_parts as gated
from mixlab.export.dense import mlp_misfits, mlp_moves
from mixlab.export.fields import Fields
from mixlab.export.mixtures import (
    dense_layers,
    expert_misfits,
    expert_moves,
    moe_of,
    read_moe,
    read_sparse_layers,
    softmax_misfits,
)
from mixlab.export.moves import Move, constant, offset, same
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
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig

NO_DECAY = -1e4
"""An A_log whose exponential is 0: plain DeltaNet as a Gated DeltaNet that forgets nothing."""


class QwenHybrid(Target):
    """What both have in common."""

    def norm_move(self, ours: str, stock: str) -> Move:
        return offset(ours, stock)

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        for layer in layers:
            if layer.sequence_mixer.kind not in ("attention", "gated_deltanet"):
                yield f"{layer.sequence_mixer.kind}: {label} has Gated DeltaNet and attention"
        mixers = attention.of(layers)
        yield from attention.misfits(cfg, mixers, "head", label, partial=True)
        if any(m.bias for m in mixers):
            yield f"bias = true: {label} would put one on its gates and its output as well"
        if any(m.window is not None for m in mixers):
            yield f"window: the attention of {label} sees all earlier tokens"
        yield from self._delta_misfits(cfg, gated.delta_of(layers))
        yield from mlp_misfits(layers, label)

    def _delta_misfits(
        self, cfg: LanguageModelConfig, mixers: list[GatedDeltaNetConfig]
    ) -> Iterator[str]:
        label = self.label
        for name in ("n_heads", "v_heads", "head_dim", "v_dim", "conv_size"):
            yield from everywhere([getattr(m, name) for m in mixers], name, label)
        for m in mixers:
            if m.conv_size == 0:
                yield f"conv_size = 0: {label} has a short convolution"
            if m.allow_neg_eigval:
                yield f"allow_neg_eigval = true: beta stays below 1 in {label}"
            if not m.output_gate:
                yield f"output_gate = false: the Gated DeltaNet of {label} always has its gate"
            if m.norm_eps != cfg.norm_eps:
                yield f"norm_eps of the mixer differs from the model's, and {label} has one"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        tree = common_config(self, cfg) | gated.attention_fields(layers)
        widths = [x.channel_mixer.d_ff for x in layers if isinstance(x.channel_mixer, MLPConfig)]
        tree["intermediate_size"] = widths[0] if widths else moe_of(layers)[0].d_expert
        kinds = [isinstance(x.sequence_mixer, AttentionConfig) for x in layers]
        tree["layer_types"] = [gated.KINDS[is_full] for is_full in kinds]
        interval = gated.interval_of(layers)
        if interval is not None:  # for llama.cpp, which reads no list
            tree["full_attention_interval"] = interval
        for m in gated.delta_of(layers)[:1]:
            tree |= {
                "linear_num_key_heads": m.n_heads,
                "linear_num_value_heads": m.v_heads,
                "linear_key_head_dim": m.head_dim,
                "linear_value_head_dim": m.v_dim,
                "linear_conv_kernel_dim": m.conv_size,
            }
        return tree

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        mixer = layer.sequence_mixer
        if isinstance(mixer, GatedDeltaNetConfig):
            ours = f"blocks.{layer.index}.sequence_mixer"
            stock = f"model.layers.{layer.index}.linear_attn"
            yield same(f"{ours}.conv1d.weight", f"{stock}.conv1d.weight")
            yield same(f"{ours}.o_norm.weight", f"{stock}.norm.weight")
            yield same(f"{ours}.o_proj.weight", f"{stock}.out_proj.weight")
            yield from self.projection_moves(mixer, ours, stock)
            if mixer.decay == "gated":
                yield same(f"{ours}.A_log", f"{stock}.A_log")
                yield same(f"{ours}.dt_bias", f"{stock}.dt_bias")
            else:
                yield constant(f"{stock}.A_log", (mixer.v_heads,), NO_DECAY)
                yield constant(f"{stock}.dt_bias", (mixer.v_heads,))
        else:
            yield from gated.gated_attention_moves(layer)
        if isinstance(layer.channel_mixer, MoEConfig):
            yield from expert_moves(layer)
            yield from gated.shared_expert_moves(cfg, layer)
        else:
            yield from mlp_moves(layer)

    def projection_moves(self, mixer: GatedDeltaNetConfig, ours: str, stock: str) -> Iterator[Move]:
        """Queries, keys, values, gates, betas and time steps of Gated DeltaNet."""
        raise NotImplementedError

    def our_model(self, fields: Fields) -> Tree:
        tree = read_common(fields)
        fields.must("attn_output_gate", True, why="the stock class always has its gate")
        fields.must("attention_bias", False, why="mixlab's gates and outputs have no biases")
        fields.must("mamba_ssm_dtype", "float32", why="states are kept in float32")
        fields.must("mtp_num_hidden_layers", 0, why="mixlab predicts one token at a time")
        kinds = gated.read_kinds(fields, tree["n_layers"])
        full = attention.read(fields, tree, "head", rope_frac=0.25, partial=True
        ) | {"output_gate": True}  # fmt: skip
        delta = {
            "kind": "gated_deltanet",
            "n_heads": fields.count("linear_num_key_heads", 16),
            "n_v_heads": fields.count("linear_num_value_heads", 32),
            "head_dim": fields.count("linear_key_head_dim", 128),
            "v_head_dim": fields.count("linear_value_head_dim", 128),
            "conv_size": fields.count("linear_conv_kernel_dim", 4),
            "norm_eps": tree["norm_eps"],
        }
        channels = self.read_channels(fields, tree["n_layers"])
        mixers = {"linear_attention": ("linear", delta), "full_attention": ("full", full)}
        blocks, names = {}, []
        for kind, (word, channel) in zip(kinds, channels, strict=True):
            name, mixer = mixers[kind]
            name = f"{name}-{word}" if len({w for w, _ in channels}) > 1 else name
            blocks[name] = {"sequence_mixer": mixer, "channel_mixer": channel}
            names.append(name)
        return tree | named_blocks(names, blocks)

    def read_channels(self, fields: Fields, n_layers: int) -> list[tuple[str, Tree]]:
        """A word and our config for the channel mixer of every layer."""
        d_ff = fields.count("intermediate_size")
        fields.must("mlp_only_layers", [], why="this architecture has no experts")
        return [("dense", {"kind": "mlp", "d_ff": d_ff})] * n_layers

    def can_cache(self, cfg: LanguageModelConfig) -> bool:
        return bool(
            attention.of(layers_of(cfg))
        )  # its cache asks an attention layer for its length

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        layers = layers_of(cfg)
        mixers, deltas = attention.of(layers), gated.delta_of(layers)
        if not mixers:
            why = "there it generates without a cache only, as no layer has attention"
            answers = [Answer("transformers", "yes", why)]
            untried = "no layer has attention, which its cache manager may expect"
            served = Answer("vLLM", "untried", untried)
        else:
            answers = [Answer("transformers", "yes", "")]
            served = Answer("vLLM", "yes", "")
            if any((m.head_dim, m.v_dim) != (128, 128) for m in deltas):
                served = served._replace(
                    why="heads of Gated DeltaNet other than 128 take its slower kernels"
                )
        gguf = self.gguf_problem(layers)
        gguf_answer = Answer("llama.cpp", "no" if gguf else "yes", gguf)
        return (*answers, served, served._replace(engine="SGLang"), gguf_answer)

    def gguf_problem(self, layers: list[Layer]) -> str:
        """Why llama.cpp cannot take it; empty if it can."""
        if any(m.head_dim != m.v_dim for m in gated.delta_of(layers)):
            return "it takes values of the width of keys (v_head_dim = head_dim) only"
        if gated.interval_of(layers) is None:
            return "its converter reads attention at every k-th layer only"
        return ""


class Qwen35Text(QwenHybrid):
    label, model_type, architecture = "Qwen3.5 (text)", "qwen3_5_text", "Qwen3_5ForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        yield from super().misfits(cfg)
        for layer in layers_of(cfg):
            if layer.channel_mixer.kind != "mlp":
                yield f"{layer.channel_mixer.kind}: every layer of {self.label} has an mlp"

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        tree = super().stock_config(cfg)
        turned = round(tree["head_dim"] * tree["partial_rotary_factor"]) // 2
        third = turned // 3  # text has one position per token, so how they are dealt is all one
        sections = [turned - 2 * third, third, third]
        tree["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
        return tree

    def projection_moves(self, mixer: GatedDeltaNetConfig, ours: str, stock: str) -> Iterator[Move]:
        sizes = [mixer.n_heads * mixer.head_dim] * 2 + [mixer.v_heads * mixer.v_dim]
        yield Move(
            tuple(f"{ours}.{x}_proj.weight" for x in "qkv"), (f"{stock}.in_proj_qkv.weight",),
            lambda *parts: (torch.cat(parts),), lambda t: t.split(sizes),
        )  # fmt: skip
        yield same(f"{ours}.g_proj.weight", f"{stock}.in_proj_z.weight")
        if mixer.decay == "gated":
            yield same(f"{ours}.b_proj.weight", f"{stock}.in_proj_b.weight")
            yield same(f"{ours}.a_proj.weight", f"{stock}.in_proj_a.weight")
        else:
            yield Move(
                (f"{ours}.b_proj.weight",),
                (f"{stock}.in_proj_b.weight", f"{stock}.in_proj_a.weight"),
                lambda t: (t, torch.zeros_like(t)),
            )


class Qwen3Next(QwenHybrid):
    label, model_type, architecture = "Qwen3-Next", "qwen3_next", "Qwen3NextForCausalLM"

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        yield from super().misfits(cfg)
        mixtures = moe_of(layers_of(cfg))
        yield from expert_misfits(mixtures, self.label)
        yield from softmax_misfits(mixtures, self.label)

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        tree = super().stock_config(cfg) | {
            "decoder_sparse_step": 1, "mlp_only_layers": dense_layers(layers)
        }  # fmt: skip
        for moe in moe_of(layers)[:1] or [MoEConfig(n_experts=2, n_active_experts=2, d_expert=1)]:
            tree |= {
                "num_experts": moe.n_experts,
                "num_experts_per_tok": moe.n_active_experts,
                "moe_intermediate_size": moe.d_expert,
                "shared_expert_intermediate_size": moe.d_shared,
                "norm_topk_prob": moe.norm_topk_prob,
                "router_aux_loss_coef": moe.aux_loss_weight,
            }
        return tree

    def projection_moves(self, mixer: GatedDeltaNetConfig, ours: str, stock: str) -> Iterator[Move]:
        n_keys, n_shared = mixer.n_heads, mixer.v_heads // mixer.n_heads
        sizes = [mixer.head_dim] * 2 + [n_shared * mixer.v_dim] * 2

        def pack(*parts: Tensor) -> tuple[Tensor, ...]:
            """For each key head its query, key, values and gates, one after the other."""
            per_head = [part.unflatten(0, (n_keys, -1)) for part in parts]
            return (torch.cat(per_head, dim=1).flatten(0, 1),)

        def unpack(t: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
            parts = t.unflatten(0, (n_keys, -1)).split(widths, dim=1)
            return tuple(part.flatten(0, 1) for part in parts)

        yield Move(
            tuple(f"{ours}.{x}_proj.weight" for x in "qkvg"), (f"{stock}.in_proj_qkvz.weight",),
            pack, lambda t: unpack(t, sizes),
        )  # fmt: skip
        b, ba = f"{ours}.b_proj.weight", f"{stock}.in_proj_ba.weight"
        if mixer.decay == "gated":
            yield Move(
                (b, f"{ours}.a_proj.weight"), (ba,), pack, lambda t: unpack(t, [n_shared] * 2)
            )
        else:
            yield Move((b,), (ba,), lambda t: pack(t, torch.zeros_like(t)))

    def read_channels(self, fields: Fields, n_layers: int) -> list[tuple[str, Tree]]:
        d_ff = fields.count("intermediate_size", 1)
        moe = read_moe(fields, width="moe_intermediate_size", norm_topk_default=True)
        d_shared = fields.count("shared_expert_intermediate_size", 512, least=0)
        if d_shared % moe["d_expert"]:
            fields.refuse(
                "shared_expert_intermediate_size", d_shared,
                f"a multiple of moe_intermediate_size = {moe['d_expert']}",
            )  # fmt: skip
        moe["n_shared_experts"] = d_shared // moe["d_expert"]
        moe["shared_expert_gate"] = d_shared > 0
        dense = ("dense", {"kind": "mlp", "d_ff": d_ff})
        return [
            ("sparse", moe) if is_sparse else dense
            for is_sparse in read_sparse_layers(fields, n_layers)
        ]

    def gguf_problem(self, layers: list[Layer]) -> str:
        if dense_layers(layers):
            return "its loader of this model expects experts in every layer"
        return super().gguf_problem(layers)
