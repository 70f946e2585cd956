"""What a looped model costs by formula, against what PyTorch counts and what a state holds."""

import pytest
import torch
from looped_models import BLOCK, config, looped_model
from torch.utils.flop_counter import FlopCounterMode

from mixlab.data.batch import Batch
from mixlab.nn.budget import model_budget, state_bytes
from mixlab.nn.language_model import build_model
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.training.language_modelling import accumulate_gradients

T = 12
REFERENCE = {**BLOCK, "sequence_mixer": {**BLOCK["sequence_mixer"], "backend": "reference"}}
FIXED = {"kind": "fixed", "steps": 3}


@pytest.mark.parametrize("injection", ["add", "linear", "concat"])
@pytest.mark.parametrize("state_init", ["input", "learned"])
@pytest.mark.parametrize("halting", ["fixed", "gate"])
def test_parameters_count_once(injection, state_init, halting):
    cfg = config(injection=injection, state_init=state_init, halting={"kind": halting})
    n_params = sum(p.numel() for p in build_model(cfg, 0).parameters())
    assert model_budget(cfg, T).n_params == n_params
    deeper = config(
        injection=injection, state_init=state_init, halting={"kind": halting},
        depth={"kind": "fixed", "steps": 9},
    )  # fmt: skip
    assert model_budget(deeper, T).n_params == n_params


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("settings", [
    {},
    {"exit_loss_weight": 0.0, "injection": "linear"},
    {"bp_max_loops": 1, "injection": "concat"},
    {"bp_max_loops": 2, "injection": "concat", "state_init": "zeros"},
    {"state_norm": "plain", "state_init": "learned"},
    {"bp_max_loops": 2, "halting": {"kind": "gate"}, "injection": "linear"},
    {"H_cycles": 2, "bp_max_loops": 3, "halting": {"kind": "gate"}},
], ids=str)  # fmt: skip
def test_training_flops_are_those_that_run(settings):
    """All products of one update, less what causality saves; the gate's own D are left out."""
    cfg = config(depth=FIXED, blocks={"only": REFERENCE}, pattern=None, **settings)
    model = build_model(cfg, 0)
    tokens = torch.randint(31, (2, T))
    batch = Batch(tokens, tokens.clone(), torch.zeros(2, T, dtype=torch.int32))
    found = counted(lambda: accumulate_gradients(model, [batch]))
    budget = model_budget(cfg, T)
    runs = [layer.forward_flops_per_token for layer in budget.layers]
    assert runs[1] == runs[0] * 3 * cfg.recursion.loops_per_step
    from mixlab.nn.budget import layer_runs

    saved = 4 * 16 * (T - (T + 1) / 2)  # of one attention, per token
    uncausal = sum(saved * (r.forward + 2 * r.with_gradient) for r in layer_runs(cfg))
    found -= counted(lambda: gate_alone(model, settings))
    assert found == pytest.approx(2 * T * (budget.train_flops_per_token + uncausal), rel=1e-9)


def gate_alone(model, settings):
    gate = model.recursion.gate
    if gate is None:
        return
    n_exits = 3
    for _ in range(n_exits):
        # Forward, and the weight's gradient: the state comes detached.
        gate(torch.randn(2, T, 16)).sum().backward()


def test_forward_flops_at_inference():
    cfg = config(depth=FIXED, blocks={"only": REFERENCE}, pattern=None, injection="concat")
    model = build_model(cfg, 0)
    tokens = torch.randint(31, (2, T))
    found = counted(lambda: model(tokens))
    n_runs = 1 + 2 * 3 + 1
    uncausal = n_runs * 4 * 16 * (T - (T + 1) / 2)
    budget = model_budget(cfg, T)
    assert found == pytest.approx(2 * T * (budget.forward_flops_per_token + uncausal), rel=1e-9)


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_state_bytes_count_every_loop(n_tokens):
    cfg = config(depth=FIXED)
    model = looped_model(depth=FIXED).float()
    tokens = torch.randint(31, (1, n_tokens))
    state = model(tokens, model.initial_state(1), loops=Loops()).state
    layers = [*state.prelude]
    for stream in [*state.core.values(), *state.coda.values()]:
        layers += stream.states
    tensors = [t for layer in layers for t in layer if isinstance(t, torch.Tensor)]
    assert len(layers) == 1 + 2 * 3 + 1
    assert state_bytes(cfg, n_tokens, 4) == sum(t.numel() * t.itemsize for t in tensors)
