"""Activation checkpointing changes what is kept, and nothing that is computed."""

import pytest
import torch

from mixlab.core.config import decode
from mixlab.data.synthetic import RandomText
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.training.language_modelling import LanguageModelling
from mixlab.training.objective import update
from mixlab.training.optimizers import AdamWConfig

MOE = {
    "kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 8, "scores": "sigmoid",
    "bias_update_rate": 0.1, "router_noise_std": 0.1, "aux_loss_weight": 0.01,
}  # fmt: skip
LINEAR = {
    "sequence_mixer": {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 8},
    "channel_mixer": {"kind": "mlp", "d_ff": 24},
}
LOOPED = {
    "kind": "looped", "prelude_layers": 1, "core_layers": 1, "coda_layers": 1,
    "depth": {"kind": "fixed", "steps": 3}, "halting": {"kind": "gate"}, "exit_loss_weight": 0.5,
    "bp_max_loops": 2,
}  # fmt: skip


def build(recursion=None):
    full = {
        "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
        "channel_mixer": MOE,
    }
    tree = {
        "vocab_size": 13, "d_model": 16, "n_layers": 3, "dropout": 0.2,
        "blocks": {"full": full, "linear": LINEAR}, "pattern": ["linear", "full", "linear"],
        "recursion": recursion,
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), 0)


def trained(recursion, *, recomputes, n_updates=3):
    """Losses, figures and weights after some updates, with dropout and noise in the routers."""
    model = build(recursion)
    model.recomputes = recomputes
    objective = LanguageModelling(
        model, RandomText(13, 12, 1, mean_document=5), batch_size=4, micro_batch_size=2
    )
    optimizer = AdamWConfig(lr=0.01).build(model.named_parameters())
    torch.manual_seed(5)
    rows = []
    for i in range(n_updates):
        metrics = update(objective, optimizer, 4 * i, lr_factor=1.0, max_grad_norm=1.0)
        rows.append((float(metrics.loss_nats), float(metrics.grad_norm), float(metrics.aux_loss)))
    return rows, model.state_dict(), torch.get_rng_state()


@pytest.mark.parametrize("recursion", [None, LOOPED], ids=["plain", "looped"])
def test_losses_gradients_draws_and_balance_are_the_same(recursion):
    rows, weights, rng = trained(recursion, recomputes=False)
    found_rows, found, found_rng = trained(recursion, recomputes=True)
    assert found_rows == rows
    assert found.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []
    assert torch.equal(found_rng, rng)


def kept_bytes(recomputes):
    """What the graph of one forward pass keeps, weights aside."""
    model = build()
    model.recomputes = recomputes
    own = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.trunk(torch.zeros(4, 64, dtype=torch.int64))
    del out
    return sum(kept.values())


def test_less_is_kept():
    assert kept_bytes(recomputes=True) < 0.3 * kept_bytes(recomputes=False)
