"""Tiny looped models: attention and Gated DeltaNet, dense and mixed experts, in every part."""

import torch

from mixlab.core.config import decode
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

BLOCK = {
    "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
    "channel_mixer": {"kind": "mlp", "d_ff": 24},
}
LINEAR = {
    "sequence_mixer": {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 8},
    "channel_mixer": {"kind": "moe", "n_experts": 3, "n_active_experts": 2, "d_expert": 8,
                      "aux_loss_weight": 0.1},
}  # fmt: skip
TREE = {
    "vocab_size": 31, "d_model": 16, "n_layers": 4,
    "blocks": {"full": BLOCK, "linear": LINEAR}, "pattern": ["full", "linear"],
}  # fmt: skip
MODEL_KEYS = {"blocks", "pattern", "n_layers", "dropout", "tie_embeddings"}
HALTING = {
    "kl_exit": {"kind": "kl_exit", "exit_threshold": 1e-2},
    "gate": {"kind": "gate", "exit_threshold": 0.5, "q_head_bias_init": -1.0},
}
"""With thresholds at which tokens of an untrained model leave at different steps."""


def config(**settings) -> LanguageModelConfig:
    """A looped model's config; keys of the model and of its recursion may be mixed."""
    changes = {key: settings.pop(key) for key in list(settings) if key in MODEL_KEYS}
    recursion = {"kind": "looped", **settings}
    return decode(LanguageModelConfig, {**TREE, "recursion": recursion, **changes})


def looped_model(seed: int = 0, **settings) -> LanguageModel:
    """In float64 and evaluation mode, its embedding at the scale that it has after training."""
    model = build_model(config(**settings), seed).double().eval()
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    return model


def tokens(batch: int = 3, length: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(seed))
