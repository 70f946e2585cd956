"""Every kind of halting, trained a little on easy puzzles: answers come right and heads halt."""

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.infer.refinement import solve
from mixlab.nn.recursion.refiner import RefinerConfig, build_refiner
from mixlab.tasks.examples import ExampleStream
from mixlab.tasks.sets import build_set
from mixlab.tasks.sudoku.dug import SudokuDug
from mixlab.training.objective import update
from mixlab.training.optimizers import MuonConfig
from mixlab.training.refinement import Refinement

TASK = SudokuDug(size=4, blanks=(1, 2))
N_STEPS, MAX_SEGMENTS = 300, 4
KINDS = {
    "fixed": {},
    "bce": {"q_head_bias_init": -1.0},
    "q_learning": {"q_head_bias_init": -1.0},
    "act": {"act_penalty": 0.1, "q_head_bias_init": -1.0},
    "ponder": {"ponder_weight": 0.1, "ponder_prior": 0.6, "q_head_bias_init": -1.0},
}


@pytest.fixture(scope="module")
def sets():
    return {name: build_set(TASK, name, n, 1) for name, n in (("train", 500), ("test", 100))}


def refiner(kind: str):
    cfg = {
        "vocab_size": 6, "grid": [4, 4], "box": [2, 2], "d_model": 32, "H_cycles": 1, "L_cycles": 1,
        "L_layers": 1, "init_scale": 0.5,
        "block": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 16, "rope_frac": 0.0},
            "channel_mixer": {"kind": "mlp", "d_ff": 64},
        },
        "halting": {"kind": kind, "halt_max_steps": MAX_SEGMENTS, **KINDS[kind]},
    }  # fmt: skip
    return build_refiner(decode(RefinerConfig, cfg), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_halts(kind, sets):
    model = refiner(kind)
    stream = ExampleStream(TASK, sets["train"], seed=1)
    objective = Refinement(model, stream, batch_size=64, seed=1)
    optimizer = MuonConfig(lr=0.01).build(model.named_parameters())
    first = float(objective.accumulate(0).loss_nats)
    objective.carry = None
    model.zero_grad()
    for i in range(N_STEPS):
        factor = 1.0 - i / N_STEPS
        metrics = update(objective, optimizer, 64 * i, lr_factor=factor, max_grad_norm=1.0)
    inputs = torch.from_numpy(sets["test"].inputs).long()
    whole = solve(model, inputs)
    eager = solve(model, inputs, exit_threshold=0.0)
    right = [(np.asarray(x.answers) == sets["test"].labels).all(axis=1).mean()
             for x in (whole, eager)]  # fmt: skip
    assert float(metrics.loss_nats) < 0.3 * first
    assert right[0] > 0.6 and right[1] > 0.5
    assert bool((whole.steps == MAX_SEGMENTS).all())
    mean = float(eager.steps.float().mean())
    assert mean == MAX_SEGMENTS if kind == "fixed" else mean < 0.75 * MAX_SEGMENTS


@pytest.mark.slow
def test_compiled_training_is_the_same_function(sets):
    """On this machine's own compiler, where it has one."""
    losses = []
    for is_compiled in (False, True):
        model = refiner("bce")
        if is_compiled:
            model.L_net.compile(dynamic=False)
        objective = Refinement(model, ExampleStream(TASK, sets["train"], 1), batch_size=16, seed=1)
        optimizer = MuonConfig(lr=0.01).build(model.named_parameters())
        losses.append(
            [
                float(update(objective, optimizer, 16 * i, lr_factor=1.0, max_grad_norm=1.0)[0])
                for i in range(4)
            ]
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # float32, other fusions
