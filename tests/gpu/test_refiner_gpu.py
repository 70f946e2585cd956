"""A refiner on a GPU against the same on the CPU: fused and padded products, compiled training."""

import pytest
import torch

from mixlab.checks.refinement.base import MadeUpPuzzles
from mixlab.core.config import decode
from mixlab.nn.recursion.refiner import RefinerConfig, build_refiner
from mixlab.training.refinement import Refinement

pytestmark = pytest.mark.gpu

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 2, "head_dim": 16},
    "grouped": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8},
    "short_rows": {"kind": "attention", "n_heads": 2, "head_dim": 32},  # one kernel in bfloat16
    "token_mlp": {"kind": "token_mlp", "d_ff": 24},  # 17 positions: not a multiple of 8
}


def refiner(kind: str):
    cfg = decode(
        RefinerConfig,
        {
            "vocab_size": 6, "grid": [4, 4], "d_model": 32, "H_cycles": 2, "L_cycles": 2,
            "block": {"sequence_mixer": MIXERS[kind], "channel_mixer": {"kind": "mlp", "d_ff": 48}},
            "halting": {"kind": "bce", "halt_max_steps": 3},
        },
    )  # fmt: skip
    return build_refiner(cfg, seed=1)


def gradients(model, dtype=None):
    objective = Refinement(
        model, MadeUpPuzzles(model.cfg), batch_size=8, seed=0, compute_dtype=dtype
    )
    metrics = objective.accumulate(0)
    return float(metrics.loss_nats), {n: p.grad.cpu() for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", MIXERS)
def test_a_gpu_computes_what_a_cpu_does(kind):
    loss, expected = gradients(refiner(kind).double())
    found_loss, found = gradients(refiner(kind).double().cuda())
    assert found_loss == pytest.approx(loss, rel=1e-9)
    for name, grad in expected.items():  # float64 sums in another order, through 12 layers
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["attention", "token_mlp"])
def test_compiled_training_is_the_same_function(kind):
    plain, compiled = refiner(kind).cuda(), refiner(kind).cuda()
    compiled.L_net.compile(dynamic=False)
    loss, expected = gradients(plain)
    found_loss, found = gradients(compiled)
    assert found_loss == pytest.approx(loss, rel=1e-4)
    for name, grad in expected.items():  # float32, other fusions
        assert (found[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("kind", ["attention", "short_rows", "token_mlp"])
def test_bfloat16_is_close(kind):
    loss, _ = gradients(refiner(kind).cuda())
    narrow, _ = gradients(refiner(kind).cuda(), torch.bfloat16)
    assert narrow == pytest.approx(loss, rel=0.05)  # 3 digits per product, through 12 layers


@pytest.mark.parametrize("kind", ["short_rows", "token_mlp"])
def test_replayed_updates_are_those_that_are_launched(kind):
    def objective(cuda_graphs):
        model = refiner(kind).cuda()
        return Refinement(
            model, MadeUpPuzzles(model.cfg), batch_size=8, seed=0, compute_dtype=torch.bfloat16,
            cuda_graphs=cuda_graphs,
        )  # fmt: skip

    launched, replayed = objective(False), objective(True)
    for position in range(0, 6 * 8, 8):
        expected, found = launched.accumulate(position), replayed.accumulate(position)
        assert found.loss_nats == expected.loss_nats
        assert found.figures["count"] == expected.figures["count"]
        pairs = zip(launched.model.parameters(), replayed.model.parameters(), strict=True)
        for one, other in pairs:
            assert torch.equal(one.grad, other.grad)
            one.grad = other.grad = None
    assert replayed.launching == "updates are replayed as a CUDA graph"
    for name, part in launched.state_tensors().items():
        assert torch.equal(replayed.state_tensors()[name], part), name
