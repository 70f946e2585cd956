"""A tiny looped model in float64, and a batch for it."""

import torch

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

CHANNEL = {
    "mlp": {"kind": "mlp", "d_ff": 24},
    "moe": {"kind": "moe", "n_experts": 3, "n_active_experts": 2, "d_expert": 8,
            "aux_loss_weight": 0.1},
}  # fmt: skip


def looped(channel: str = "mlp", blocks: str = "plain", **recursion) -> LanguageModel:
    block = {
        "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
        "channel_mixer": CHANNEL[channel],
    }
    tree = {
        "vocab_size": 31, "d_model": 16, "n_layers": 4, "blocks": {blocks: block},
        "recursion": {"kind": "looped", **recursion},
    }  # fmt: skip
    model = build_model(decode(LanguageModelConfig, tree), 0).double()
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    return model


def batch_of(seed: int = 3) -> Batch:
    x = torch.randint(31, (3, 13), generator=torch.Generator().manual_seed(seed))
    return Batch(x[:, :-1], x[:, 1:], torch.zeros(3, 12, dtype=torch.int32))
