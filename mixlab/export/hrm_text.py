"""HrmText: two stacks of layers, run in cycles; the home of some looped models.

Its low stack L reads z + x, its high stack H reads x + z and gives the answer:

    z = z_0;   L_cycles times: z = rms(L(z + x));   answer = rms(H(x + z))      (H_cycles = 1)

A looped model of ours without prelude and coda is s = core(rms(s) + norm(e)), r times, and then a
norm. With both stacks set to the core, x to the normed embedding and L_cycles = r - 1, that is the
same function, provided that the norm of the state has no weight (`state_norm: plain`), since the
norms of HrmText have none. All other weights of norms go into the matrices that read them. A plain
stack is the case of no cycle at all.

Why others do not fit: a prelude or a coda has no stack of its own there; the first loop of
`state_init: input` reads the embedding without its norm; and a plain model with copied layers has
neither the norm nor the sum between two loops.
"""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mixlab.core.config import Tree
from mixlab.export import attention
from mixlab.export.dense import mlp_misfits
from mixlab.export.fields import Fields
from mixlab.export.moves import Move
from mixlab.export.target import Answer, Layer, Target, common_config, layers_of, other_kinds
from mixlab.nn.language_model import LanguageModelConfig


def n_loops(cfg: LanguageModelConfig) -> int:
    """How often the core runs at the depth that generation uses; a plain stack runs once."""
    loops = cfg.recursion
    return 1 if loops is None else loops.depth.trained_steps * loops.loops_per_step


class HrmText(Target):
    label, model_type, architecture = "HrmText", "hrm_text", "HrmTextForCausalLM"
    loops = True

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        layers, label = layers_of(cfg), self.label
        yield from other_kinds(layers, ("attention", "mlp"), label)
        mixers = attention.of(layers)
        yield from attention.misfits(cfg, mixers, "none", label)
        yield from mlp_misfits(layers, label)
        if any(m.bias for m in mixers):
            yield f"bias = true: {label} would put one on its gates and its output as well"
        if any(m.window is not None for m in mixers):
            yield f"window: the attention of {label} sees all earlier tokens"
        if mixers and cfg.d_model % mixers[0].n_heads:
            yield f"d_model = {cfg.d_model} is no multiple of n_heads, as {label} wants it"
        yield from self._loop_misfits(cfg.recursion)

    def _loop_misfits(self, loops: Any) -> Iterator[str]:
        if loops is None:
            return
        label = self.label
        for part in ("prelude_layers", "coda_layers"):
            if getattr(loops, part):
                yield f"recursion.{part}: {label} has none, all its layers are in the loop"
        if loops.injection != "add":
            yield f"recursion.injection = {loops.injection}: {label} adds the input to the state"
        if loops.state_init == "input":
            yield "recursion.state_init = input: its first loop reads the embedding without a norm"
        if loops.state_norm != "plain":
            yield (
                f"recursion.state_norm = {loops.state_norm}: the norm of the state has no weight "
                f"in {label} (state_norm=plain)"
            )

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        layers = layers_of(cfg)
        mixer, cycles = attention.of(layers)[0], n_loops(cfg) - 1
        tree = common_config(self, cfg) | attention.stock_config(mixer)
        del tree["num_key_value_heads"]  # every head has its own keys and values there
        return tree | {
            "intermediate_size": layers[0].channel_mixer.d_ff,
            "tie_word_embeddings": False,
            "H_cycles": 1,
            "L_cycles": cycles,
            "L_bp_cycles": [1],
            "num_layers_per_stack": cfg.n_layers,
            "num_hidden_layers": cfg.n_layers * (cycles + 1),  # its caches, one for each run
            "embedding_scale": 1.0,
            "prefix_lm": False,
            "mlp_bias": False,
        }

    def moves(self, cfg: LanguageModelConfig) -> list[Move]:
        found = [*_embedding_moves(cfg), _head_move(cfg)]
        for layer in layers_of(cfg):
            found.extend(_layer_moves(layer))
        if cfg.recursion is not None and cfg.recursion.halting.kind == "gate":
            names = ("recursion.gate.weight", "recursion.gate.bias")
            found.append(Move(names, (), lambda *_: ()))  # all loops run, so nothing asks it
        return found

    def our_model(self, fields: Fields) -> Tree:
        fields.refuse(
            "model_type", self.model_type,
            "an architecture that mixlab can train; it has no model of two stacks, though some of "
            "its looped models can be written as one",
        )  # fmt: skip
        raise AssertionError("refused")

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        served = Answer("vLLM", "yes", "")
        if n_loops(cfg) == 1:
            served = Answer("vLLM", "untried", "a stack without low cycles was tried nowhere else")
        return (
            Answer("transformers", "yes", ""),
            served,
            served._replace(engine="SGLang"),
            Answer("llama.cpp", "no", "its releases do not have this architecture"),
        )


def _embedding_moves(cfg: LanguageModelConfig) -> Iterator[Move]:
    """x for every token of the vocabulary, and the state before the first cycle."""
    names = ("model.embed_tokens.weight", "model.z_L_init")
    factor = cfg.d_model**0.5 if cfg.scale_embeddings else 1.0
    looped = cfg.recursion
    if looped is None:
        yield Move(
            ("embed_tokens.weight",), names, lambda e: (e * factor, e.new_zeros(cfg.d_model))
        )
        return

    def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.rms_norm(x, (cfg.d_model,), weight, cfg.norm_eps)

    inputs = ("embed_tokens.weight", "recursion.input_norm.weight")
    if looped.state_init == "learned":
        yield Move(
            (*inputs, "recursion.first_state"), names,
            lambda e, w, first: (norm(e * factor, w), norm(first)),
        )  # fmt: skip
    else:
        yield Move(inputs, names, lambda e, w: (norm(e * factor, w), e.new_zeros(cfg.d_model)))


def _head_move(cfg: LanguageModelConfig) -> Move:
    head = "embed_tokens.weight" if cfg.tie_embeddings else "lm_head.weight"
    return Move((head, "norm.weight"), ("lm_head.weight",), lambda h, w: (h * w,))


def _layer_moves(layer: Layer) -> Iterator[Move]:
    """One layer, written into both stacks, with its norms' weights in the matrices after them."""
    mixer, ours = layer.sequence_mixer, f"blocks.{layer.index}"
    norms = {part: f"{ours}.{part}_norm.weight" for part in ("sequence", "channel")}

    def both(leaf: str) -> tuple[str, ...]:
        return tuple(f"model.{s}_module.layers.{layer.index}.{leaf}.weight" for s in "LH")

    def twice(t: Tensor) -> tuple[Tensor, ...]:
        return t, t.clone()

    def copied(t: Tensor) -> Tensor:
        """Each key-value head once for every query head that reads it."""
        heads = t.unflatten(0, (mixer.kv_heads, mixer.head_dim))
        return heads.repeat_interleave(mixer.n_heads // mixer.kv_heads, dim=0).flatten(0, 1)

    def seq(leaf: str) -> str:
        return f"{ours}.sequence_mixer.{leaf}.weight"

    w, at = norms["sequence"], "self_attn"
    yield Move((seq("q_proj"), w), both(f"{at}.q_proj"), lambda t, w: twice(t * w))
    for leaf in ("k_proj", "v_proj"):
        yield Move((seq(leaf), w), both(f"{at}.{leaf}"), lambda t, w: twice(copied(t) * w))
    if mixer.output_gate:
        yield Move((seq("g_proj"), w), both(f"{at}.gate_proj"), lambda t, w: twice(t * w))
        yield Move((seq("o_proj"),), both(f"{at}.o_proj"), twice)
    else:  # a gate that stands at a half, and twice the output
        still = both(f"{at}.gate_proj")
        yield Move((seq("q_proj"),), still, lambda t: twice(t.new_zeros(t.shape)))
        yield Move((seq("o_proj"),), both(f"{at}.o_proj"), lambda t: twice(2 * t))
    w, mlp = norms["channel"], f"{ours}.channel_mixer"
    for leaf in ("gate_proj", "up_proj"):
        yield Move((f"{mlp}.{leaf}.weight", w), both(f"mlp.{leaf}"), lambda t, w: twice(t * w))
    yield Move((f"{mlp}.down_proj.weight",), both("mlp.down_proj"), twice)
