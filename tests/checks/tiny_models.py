"""Sound models of every kind, small enough to be checked in a fraction of a second."""

from tiny_mixers import CHANNEL, SEQUENCE

from mixlab.checks import CheckContext
from mixlab.core.config import decode
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model


def _named(table: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Mixer trees by "kind" for the plain variant and "kind variant" for the others."""
    return {
        kind if variant == "plain" else f"{kind} {variant}": {"kind": kind, **settings}
        for kind, variants in table.items()
        for variant, settings in variants.items()
    }


SEQUENCE_MIXERS, CHANNEL_MIXERS = _named(SEQUENCE), _named(CHANNEL)


def model_config(sequence="attention", channel="mlp", **changes) -> LanguageModelConfig:
    block = {
        "sequence_mixer": SEQUENCE_MIXERS[sequence],
        "channel_mixer": CHANNEL_MIXERS[channel],
    }
    tree = {"vocab_size": 61, "d_model": 24, "n_layers": 2, "blocks": {"b": block}, **changes}
    return decode(LanguageModelConfig, tree)


def sound_model(sequence="attention", channel="mlp", seed=0, **changes) -> LanguageModel:
    return build_model(model_config(sequence, channel, **changes), seed)


def stack(pairs, seed=0) -> LanguageModel:
    """One layer of every pair of a sequence mixer and a channel mixer."""
    blocks = {
        f"{sequence}-{channel}".replace(" ", "-"): {
            "sequence_mixer": SEQUENCE_MIXERS[sequence],
            "channel_mixer": CHANNEL_MIXERS[channel],
        }
        for sequence, channel in pairs
    }
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": len(blocks), "blocks": blocks,
        "pattern": list(blocks),
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), seed)


def context(build=sound_model, **changes) -> CheckContext:
    return CheckContext(build=build, seq_len=changes.pop("seq_len", 100), **changes)
