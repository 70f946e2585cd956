"""What every stock architecture has in common: a base class, and the ends of the model.

A target says in words what of a config it has no place for, writes the stock config, and lists how
the tensors go. Nothing here needs `transformers`; the tests hold all of it to its classes.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from mixlab.core.config import Tree
from mixlab.export.fields import Fields
from mixlab.export.moves import Move, same, scaled
from mixlab.nn.channel_mixers.base import ChannelMixerConfig
from mixlab.nn.language_model import MAX_LAYERS, LanguageModelConfig
from mixlab.nn.sequence_mixers.base import SequenceMixerConfig

Engine = Literal["transformers", "vLLM", "SGLang", "llama.cpp"]
ENGINES: tuple[Engine, ...] = ("transformers", "vLLM", "SGLang", "llama.cpp")


class Answer(NamedTuple):
    """Whether an engine runs the exported model."""

    engine: Engine
    answer: Literal["yes", "no", "untried"]
    why: str  # may be empty for a plain yes


class Layer(NamedTuple):
    """One layer of a model."""

    index: int
    block: str
    sequence_mixer: SequenceMixerConfig
    channel_mixer: ChannelMixerConfig


def layers_of(cfg: LanguageModelConfig) -> list[Layer]:
    """The layers of the stack, in order."""
    return [
        Layer(i, name, cfg.blocks[name].sequence_mixer, cfg.blocks[name].channel_mixer)
        for i, name in enumerate(cfg.layers())
    ]


class Target:
    """One stock architecture."""

    label: ClassVar[str]
    """What people call it."""
    model_type: ClassVar[str]
    """Its name in config.json."""
    architecture: ClassVar[str]
    """Its class in transformers."""
    loops: ClassVar[bool] = False
    """Whether it has a place for layers that run more than once."""

    def misfits(self, cfg: LanguageModelConfig) -> Iterator[str]:
        """What the target has no place for, one sentence each, without its full stop."""
        raise NotImplementedError

    def problems(self, cfg: LanguageModelConfig) -> list[str]:
        """Every reason why this model is not one of the target's; none if it is."""
        if cfg.recursion is not None and not self.loops:
            return ["recursion: its layers run one after the other, each once"]
        return list(dict.fromkeys(self.misfits(cfg)))

    def stock_config(self, cfg: LanguageModelConfig) -> Tree:
        """The fields of config.json that say what the model is, for a config that fits."""
        raise NotImplementedError

    def layer_moves(self, cfg: LanguageModelConfig, layer: Layer) -> Iterator[Move]:
        """How the tensors of one layer go, its two norms aside."""
        raise NotImplementedError

    def norm_move(self, ours: str, stock: str) -> Move:
        """How the weight of a norm in the residual stream goes."""
        return same(ours, stock)

    def moves(self, cfg: LanguageModelConfig) -> list[Move]:
        """How all tensors of the model go."""
        found = end_moves(cfg)
        found.append(self.norm_move("norm.weight", "model.norm.weight"))
        for layer in layers_of(cfg):
            ours, stock = f"blocks.{layer.index}", f"model.layers.{layer.index}"
            for a, b in NORMS:
                found.append(self.norm_move(f"{ours}.{a}.weight", f"{stock}.{b}.weight"))
            found.extend(self.layer_moves(cfg, layer))
        return found

    def our_model(self, fields: Fields) -> Tree:
        """The model part of our config for a stock one.

        Raises:
            ModelFolderError: the stock config asks for what our model does not have.
        """
        raise NotImplementedError

    def can_cache(self, cfg: LanguageModelConfig) -> bool:
        """Whether transformers generates with a cache."""
        return True

    def engines(self, cfg: LanguageModelConfig) -> tuple[Answer, ...]:
        """Which engines run the exported model, from what their sources say."""
        raise NotImplementedError


NORMS = (
    ("sequence_norm", "input_layernorm"),
    ("channel_norm", "post_attention_layernorm"),
)  # fmt: skip


def end_moves(cfg: LanguageModelConfig) -> list[Move]:
    """Embedding and head. Scaled embeddings are written as a table that is larger by that much,
    with a head of its own, which no longer is the same table."""
    ours, stock, head = "embed_tokens.weight", "model.embed_tokens.weight", "lm_head.weight"
    moves = [] if cfg.tie_embeddings else [same(head, head)]
    if not cfg.scale_embeddings:
        return [same(ours, stock), *moves]
    factor = cfg.d_model**0.5
    if cfg.tie_embeddings:
        return [Move((ours,), (stock, head), lambda e: (e * factor, e))]
    return [scaled(ours, stock, factor), *moves]


def is_tied(cfg: LanguageModelConfig) -> bool:
    """Whether the stock model shares its head with the embedding."""
    return cfg.tie_embeddings and not cfg.scale_embeddings


def common_config(target: Target, cfg: LanguageModelConfig) -> Tree:
    """The fields that every architecture has."""
    return {
        "architectures": [target.architecture],
        "model_type": target.model_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": is_tied(cfg),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def read_common(fields: Fields, *, tied_default: bool = False) -> Tree:
    """The model-wide part of our config; the fields that must be neutral are looked at."""
    fields.must("hidden_act", "silu", why="mixlab's feed-forward layers have SiLU gates")
    fields.must("attention_dropout", 0.0, 0, why="mixlab has no dropout inside attention")
    fields.must("quantization_config", why="mixlab reads no quantised weights")
    fields.must("mlp_bias", False, why="mixlab's feed-forward layers have no biases")
    return {
        "vocab_size": fields.count("vocab_size"),
        "d_model": fields.count("hidden_size"),
        "n_layers": fields.count("num_hidden_layers", most=MAX_LAYERS),
        "max_seq_len": fields.count("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps"),
        "tie_embeddings": fields.flag("tie_word_embeddings", tied_default),
    }


def named_blocks(kinds: list[str], blocks: dict[str, Any]) -> Tree:
    """`blocks` and `pattern` of a model whose layers are of these kinds, only those that occur."""
    used = list(dict.fromkeys(kinds))
    tree: Tree = {"blocks": {name: blocks[name] for name in used}}
    if len(used) > 1:
        tree["pattern"] = {"motif": _motif(kinds)}
    return tree


def _motif(kinds: list[str]) -> list[str]:
    """The shortest beginning that, repeated and cut, gives all of `kinds`."""
    n = len(kinds)
    length = next(k for k in range(1, n + 1) if all(kinds[i] == kinds[i % k] for i in range(n)))
    return kinds[:length]


def other_kinds(layers: list[Layer], wanted: tuple[str, str], label: str) -> Iterator[str]:
    """A misfit for every layer that is not of the one kind that the target has."""
    for layer in layers:
        kinds = layer.sequence_mixer.kind, layer.channel_mixer.kind
        if kinds != wanted:
            yield f"{' + '.join(kinds)}: every layer of {label} is {' + '.join(wanted)}"


def everywhere(values: list[Any], what: str, label: str) -> Iterator[str]:
    """A misfit where layers differ in something that the target has once for all."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        told = ", ".join(map(str, distinct[:4]))
        yield f"{what} differs between layers ({told}), and {label} has one for all"
