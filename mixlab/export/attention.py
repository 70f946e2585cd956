"""Softmax attention as stock models of the Llama and Qwen families have it."""

from collections.abc import Iterable, Iterator

from mixlab.core.config import Tree
from mixlab.export.fields import Fields, Rope
from mixlab.export.moves import Move, constant, same
from mixlab.export.target import Layer, everywhere
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.sequence_mixers.attention import AttentionConfig

MAX_WINDOW_LAYERS = 28
"""What the stock classes take where the config says nothing."""


def of(layers: Iterable[Layer]) -> list[AttentionConfig]:
    """The attention mixers among these layers."""
    found = (layer.sequence_mixer for layer in layers)
    return [mixer for mixer in found if isinstance(mixer, AttentionConfig)]


def shape_misfits(mixers: list[AttentionConfig], label: str) -> Iterator[str]:
    """What must be the same in all attention layers."""
    for name in ("n_heads", "kv_heads", "head_dim", "rope_theta", "rope_dim", "bias"):
        yield from everywhere([getattr(m, name) for m in mixers], name, label)


def misfits(
    cfg: LanguageModelConfig,
    mixers: list[AttentionConfig],
    qk_norm: str,
    label: str,
    *,
    partial: bool = False,
) -> Iterator[str]:
    """What every target asks of its attention layers; `partial`: not all channels need turn."""
    yield from shape_misfits(mixers, label)
    yield from norm_misfits(cfg, mixers, qk_norm, label)
    yield from rotary_misfits(mixers, label, partial=partial)


def norm_misfits(
    cfg: LanguageModelConfig, mixers: list[AttentionConfig], wanted: str, label: str
) -> Iterator[str]:
    """Whether the norms on queries and keys are what the target has."""
    has = {
        "none": "no norm on queries and keys",
        "head": "a norm on queries and keys of each head",
        "full": "a norm on queries and keys of all heads at once",
    }[wanted]
    for mixer in mixers:
        if mixer.qk_norm != wanted:
            yield f"qk_norm = {mixer.qk_norm}: {label} has {has} (qk_norm={wanted})"
        elif wanted != "none" and mixer.norm_eps != cfg.norm_eps:
            yield f"norm_eps of the attention differs from the model's, and {label} has one"


def rotary_misfits(
    mixers: list[AttentionConfig], label: str, *, partial: bool = False
) -> Iterator[str]:
    """Whether as many channels are turned as the target turns."""
    for mixer in mixers:
        if mixer.rope_dim == 0:
            yield f"rope_frac = {mixer.rope_frac:g}: {label} has rotary positions in every layer"
        elif mixer.rope_dim != mixer.head_dim and not partial:
            yield f"rope_frac = {mixer.rope_frac:g}: {label} turns all channels of a head"


def gate_misfits(mixers: list[AttentionConfig], label: str) -> Iterator[str]:
    """For targets whose attention has no output gate."""
    if any(mixer.output_gate for mixer in mixers):
        yield f"output_gate = true: the attention of {label} has no gate"


def window_misfits(mixers: list[AttentionConfig], label: str, *, per_layer: bool) -> Iterator[str]:
    """One window for the layers that have one; `per_layer`: others may have none."""
    windows = [m.window for m in mixers if m.window is not None or not per_layer]
    yield from everywhere(windows, "window", label)


def moves(cfg: LanguageModelConfig, layer: Layer, *, zero_o_bias: bool = False) -> Iterator[Move]:
    """Names only; `zero_o_bias` adds the bias on the output projection that ours never has."""
    mixer = layer.sequence_mixer
    assert isinstance(mixer, AttentionConfig)
    ours, stock = f"blocks.{layer.index}.sequence_mixer", f"model.layers.{layer.index}.self_attn"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield same(f"{ours}.{name}.weight", f"{stock}.{name}.weight")
    if mixer.bias:
        for name in ("q_proj", "k_proj", "v_proj"):
            yield same(f"{ours}.{name}.bias", f"{stock}.{name}.bias")
        if zero_o_bias:
            yield constant(f"{stock}.o_proj.bias", (cfg.d_model,))
    if mixer.qk_norm != "none":
        for name in ("q_norm", "k_norm"):
            yield same(f"{ours}.{name}.weight", f"{stock}.{name}.weight")


def stock_config(mixer: AttentionConfig, *, bias_field: bool = True) -> Tree:
    """The fields about attention."""
    tree = {
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
    }
    return tree | {"attention_bias": mixer.bias} if bias_field else tree


def read(
    fields: Fields,
    model: Tree,
    qk_norm: str,
    *,
    may_lack: tuple[str, ...] = (),
    partial: bool = False,
    rope_frac: float = 1.0,
    theta: float = 10_000.0,
) -> Tree:
    """Our attention for the fields of a stock config, in a model like `model`.

    Its bias and window are left to the caller. Where the config says nothing, `rope_frac` and
    `theta` are what the class takes; the fields of `may_lack` are worked out from others, and the
    rest are refused, since their defaults are those of one large model.
    """
    heads = fields.count("num_attention_heads")
    rope = Rope(fields, frac_default=rope_frac, theta_default=theta)
    derived = {"head_dim": max(1, model["d_model"] // heads), "num_key_value_heads": heads}
    sizes = {
        name: fields.count(name, value) if name in may_lack else fields.count(name)
        for name, value in derived.items()
    }
    head_dim = sizes["head_dim"]
    tree = {
        "kind": "attention",
        "n_heads": heads,
        "n_kv_heads": sizes["num_key_value_heads"],
        "head_dim": head_dim,
        "rope_theta": rope.theta,
        "qk_norm": qk_norm,
    }
    if heads % tree["n_kv_heads"]:
        fields.refuse("num_key_value_heads", tree["n_kv_heads"], f"a divisor of {heads}")
    if rope.frac != 1.0 and not partial:
        fields.refuse("partial_rotary_factor", rope.frac, "1, as another has no effect there")
    if rope.frac != 1.0:
        turned = int(head_dim * rope.frac)
        if turned < 2 or turned % 2:
            fields.refuse("partial_rotary_factor", rope.frac, "an even number of channels")
        tree["rope_frac"] = turned / head_dim
    if qk_norm != "none":
        tree["norm_eps"] = model["norm_eps"]
    return tree


def read_windows(fields: Fields, n_layers: int) -> list[int | None]:
    """The window of every layer, from `layer_types` or from the older fields beside it."""
    uses = fields.flag("use_sliding_window", False)
    window = fields.take("sliding_window", None)
    first = fields.count("max_window_layers", MAX_WINDOW_LAYERS, least=0)
    kinds = fields.layers("layer_types", n_layers, ("full_attention", "sliding_attention"))
    if not uses:
        if kinds is not None and "sliding_attention" in kinds:
            fields.refuse("use_sliding_window", uses, "true where layer_types has sliding ones")
        return [None] * n_layers
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        fields.refuse("sliding_window", window, "a number of tokens")
    if kinds is None:
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(n_layers)]
    return [window if kind == "sliding_attention" else None for kind in kinds]
