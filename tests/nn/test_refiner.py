"""The refiner against its equations written out, its own budget, and what it must refuse."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.recursion.refiner import (
    RefinerConfig,
    build_refiner,
    refiner_budget,
    unit_rms,
)

ATTENTION = {"kind": "attention", "n_heads": 2, "head_dim": 4, "rope_frac": 0.0}
MIXERS = {
    "attention": ATTENTION,
    "grouped": {**ATTENTION, "n_kv_heads": 1, "qk_norm": "head"},
    "token_mlp": {"kind": "token_mlp", "d_ff": 12},
    "gated_deltanet": {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 4},
}


def tree(**changes):
    block = {"sequence_mixer": ATTENTION, "channel_mixer": {"kind": "mlp", "d_ff": 12}}
    return {
        "vocab_size": 6, "grid": [4, 4], "box": [2, 2], "d_model": 8, "H_cycles": 2,
        "L_cycles": 2, "block": block, "halting": {"kind": "bce", "halt_max_steps": 3}, **changes,
    }  # fmt: skip


def config(**changes) -> RefinerConfig:
    return decode(RefinerConfig, tree(**changes))


def mixing(kind):
    return {"sequence_mixer": MIXERS[kind], "channel_mixer": {"kind": "mlp", "d_ff": 12}}


def questions(n=3):
    return torch.randint(1, 6, (n, 16), generator=torch.Generator().manual_seed(0))


def first(model, x):
    return model.initial_state(x)


@pytest.mark.parametrize("H_layers", [0, 1])
def test_a_segment_is_its_equations(H_layers):
    model = build_refiner(config(H_layers=H_layers, H_cycles=2, L_cycles=3), 1).double()
    x = questions()
    state = first(model, x)
    out = model(state, x)

    def net(which, value):
        for block in which.blocks:
            value = unit_rms(value + block.sequence_mixer(value).y, 1e-5)
            value = unit_rms(value + block.channel_mixer(value).y, 1e-5)
        return value

    e, (z_H, z_L) = model.embed(x), state
    for _ in range(2):
        for _ in range(3):
            z_L = net(model.L_net, z_L + z_H + e)
        z_H = net(model.H_net if H_layers else model.L_net, z_H + z_L)
    # float64 sums in another order
    torch.testing.assert_close(out.state.z_H, z_H, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out.logits, z_H[:, 1:] @ model.lm_head.weight.T)


def test_earlier_cycles_have_no_gradient():
    """The gradient of a segment is that of its last cycle started from the state before it."""
    grads = []
    for H_cycles in (3, 1):
        model = build_refiner(config(H_cycles=H_cycles), 1).double()
        x = questions()
        state = first(model, x)
        if H_cycles == 1:
            with torch.no_grad():
                for _ in range(2):
                    state, _ = model.cycle(state, model.embed(x))
        model(state, x).logits.square().sum().backward()
        grads.append([p.grad for p in model.L_net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", MIXERS)
def test_every_position_sees_every_other(kind):
    model = build_refiner(config(block=mixing(kind)), 1).double()
    x = questions(1)
    for changed in (0, 15):
        y = x.clone()
        y[0, changed] = 1 + x[0, changed] % 5
        before, after = (model(first(model, q), q).logits for q in (x, y))
        assert ((before - after).abs().amax(dim=-1) > 1e-9).all()


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("changes", [{}, {"H_layers": 1, "num_registers": 0},
                                     {"norm_placement": "pre", "positions": "learned"},
                                     {"state_init": "learned", "grad_cycles": 2}])  # fmt: skip
def test_parameters_are_counted(kind, changes):
    cfg = config(block=mixing(kind), **changes)
    built = sum(p.numel() for p in build_refiner(cfg, 1).parameters())
    assert refiner_budget(cfg).n_params == built


@pytest.mark.parametrize("kind", ["attention", "token_mlp"])
def test_flops_are_counted(kind):
    block = mixing(kind)
    if kind == "attention":  # torch does not count the fused kernel on a CPU
        block["sequence_mixer"] = {**ATTENTION, "backend": "reference"}
    cfg = config(block=block)
    model, x = build_refiner(cfg, 1), questions(2)
    state = first(model, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(state, x)
    head = 2 * 8  # the halting head, which the budget leaves out
    assert counter.get_total_flops() == 2 * (refiner_budget(cfg).segment_flops + head)


def test_moe_layers_keep_their_balance_loss():
    moe = {"kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 8}
    cfg = config(block={"sequence_mixer": ATTENTION, "channel_mixer": moe})
    model, x = build_refiner(cfg, 1), questions()
    assert model(first(model, x), x).aux_loss is not None


def test_the_first_state_is_fixed_and_saved():
    a, b = build_refiner(config(), 1), build_refiner(config(), 1)
    assert torch.equal(a.first_H, b.first_H) and "first_H" in a.state_dict()
    assert not torch.equal(a.first_H, build_refiner(config(), 2).first_H)
    assert not list(p for n, p in a.named_parameters() if n.startswith("first"))


BAD = {
    "halt_min_steps": {"halting": {"kind": "bce", "halt_max_steps": 2, "halt_min_steps": 3}},
    "grad_cycles": {"grad_cycles": 3},
    "box": {"box": [3, 2]},
    "state_init": {"state_init": "learned"},
    "block.sequence_mixer.window": {"block": {"sequence_mixer": {**ATTENTION, "window": 4},
                                              "channel_mixer": {"kind": "mlp", "d_ff": 4}}},
    "halting.kind": {"halting": {"kind": "bce2"}},
}  # fmt: skip


@pytest.mark.parametrize("path", BAD)
def test_what_does_not_fit_is_refused_by_name(path):
    with pytest.raises(ConfigError, match=path):
        config(**BAD[path])


def test_a_token_mixing_mlp_is_refused_in_a_causal_model():
    block = {"sequence_mixer": MIXERS["token_mlp"], "channel_mixer": {"kind": "mlp", "d_ff": 4}}
    with pytest.raises(ConfigError, match="every token sees later ones"):
        decode(
            LanguageModelConfig,
            {"vocab_size": 8, "d_model": 8, "n_layers": 1, "blocks": {"b": block}},
        )
