"""Sound models of every kind, small enough to be checked in a fraction of a second."""

from mixlab.checks import CheckContext
from mixlab.core.config import decode
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

SEQUENCE_MIXERS = {
    "attention": {"kind": "attention", "n_heads": 2, "head_dim": 8},
    "everything attention": {
        "kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "qk_norm": "head",
        "output_gate": True, "rope_frac": 0.5,
    },
    "window": {
        "kind": "attention", "n_heads": 2, "head_dim": 8, "window": 5, "qk_norm": "full",
        "bias": True,
    },
    "mla": {
        "kind": "mla", "n_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 8, "bias": True,
    },
    "mla without content": {
        "kind": "mla", "n_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 8, "v_head_dim": 8,
    },
    "gated_deltanet": {"kind": "gated_deltanet", "n_heads": 1, "n_v_heads": 2, "head_dim": 8},
    "deltanet": {
        "kind": "gated_deltanet", "n_heads": 2, "head_dim": 8, "decay": "none",
        "allow_neg_eigval": True, "output_gate": False,
    },
}  # fmt: skip
CHANNEL_MIXERS = {
    "mlp": {"kind": "mlp", "d_ff": 32},
    "moe": {"kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 16},
    "moe with bias": {
        "kind": "moe", "n_experts": 6, "n_active_experts": 2, "d_expert": 8, "scores": "sigmoid",
        "bias_update_rate": 0.01, "n_shared_experts": 1, "activation": "silu",
        "z_loss_weight": 0.001,
    },
}  # fmt: skip


def model_config(sequence="attention", channel="mlp", **changes) -> LanguageModelConfig:
    block = {
        "sequence_mixer": SEQUENCE_MIXERS[sequence],
        "channel_mixer": CHANNEL_MIXERS[channel],
    }
    tree = {"vocab_size": 61, "d_model": 24, "n_layers": 2, "blocks": {"b": block}, **changes}
    return decode(LanguageModelConfig, tree)


def sound_model(sequence="attention", channel="mlp", seed=0, **changes) -> LanguageModel:
    return build_model(model_config(sequence, channel, **changes), seed)


def stack_of_all(channel="mlp", seed=0) -> LanguageModel:
    """One layer of every sequence mixer."""
    blocks = {
        name.replace(" ", "-"): {"sequence_mixer": mixer, "channel_mixer": CHANNEL_MIXERS[channel]}
        for name, mixer in SEQUENCE_MIXERS.items()
    }
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": len(blocks), "blocks": blocks,
        "pattern": list(blocks),
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), seed)


def context(build=sound_model, **changes) -> CheckContext:
    return CheckContext(build=build, seq_len=changes.pop("seq_len", 100), **changes)
