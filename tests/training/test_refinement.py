"""The carry scheduler against the explicit loop, its rules, and gradients of the halting head."""

from functools import partial

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.nn.recursion.refiner import RefinerConfig, build_refiner
from mixlab.ops.stablemax import stablemax_nats
from mixlab.tasks.examples import Puzzles
from mixlab.training.cuda_graphs import Replayer
from mixlab.training.refinement import Refinement, explicit_loop
from mixlab.training.refinement_figures import row_nats

BATCH = 4


class Stream:
    """Row i of the stream is filled from i alone."""

    def batch(self, position, n):
        rows = [np.random.default_rng(position + i).integers(1, 6, (2, 16)) for i in range(n)]
        inputs, labels = np.stack(rows).astype(np.uint8).transpose(1, 0, 2)
        return Puzzles(inputs.copy(), labels.copy(), inputs == labels)


def objective(kind="bce", max_steps=3, loss_type="softmax", **halting):
    cfg = decode(
        RefinerConfig,
        {
            "vocab_size": 6, "grid": [4, 4], "d_model": 8, "H_cycles": 2, "L_cycles": 1,
            "block": {
                "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 4},
                "channel_mixer": {"kind": "mlp", "d_ff": 12},
            },
            "halting": {"kind": kind, "halt_max_steps": max_steps, **halting},
        },
    )  # fmt: skip
    model = build_refiner(cfg, 1).double()
    return Refinement(model, Stream(), batch_size=BATCH, seed=0, loss_type=loss_type)


def always(obj, logit):
    """A head that always gives this logit."""
    torch.nn.init.constant_(obj.model.q_head.bias, logit)
    return obj


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["fixed", "bce", "q_learning"])
def test_the_carry_scheduler_equals_the_explicit_loop(kind):
    """The same segments, losses and gradients, with the weights moving in between."""
    fast, slow = objective(kind), objective(kind)
    steps = explicit_loop(slow, 0, 3)
    for _ in range(3):
        metrics, result = fast.accumulate(0), next(steps)
        assert float(metrics.loss_nats) == float(result.lm_loss.detach().mean())
        pairs = zip(fast.model.parameters(), slow.model.parameters(), strict=True)
        with torch.no_grad():
            for a, b in pairs:
                assert torch.equal(a.grad, b.grad)
                for p in (a, b):
                    p -= 0.01 * p.grad
        fast.model.zero_grad()
        slow.model.zero_grad()


def test_a_row_keeps_its_example_until_it_halts():
    """Rows that leave at different segments still see what they would see alone."""
    fast = objective(max_steps=4, halt_exploration_prob=0.0)
    fast.accumulate(0)
    fast.carry = fast.carry._replace(halted=torch.tensor([True, False, False, True]))
    inputs = fast.carry.inputs.clone()
    fast.model.zero_grad()
    fast.accumulate(100)
    assert torch.equal(fast.carry.inputs[1:3], inputs[1:3])
    assert fast.carry.steps.tolist() == [1, 2, 2, 1]
    alone = objective(max_steps=4, halt_exploration_prob=0.0)
    *_, last = explicit_loop(alone, 0, 2)
    assert torch.allclose(last.segment.state.z_H[1:3], fast.carry.z_H[1:3])
    *_, new = explicit_loop(alone, 100, 1)
    assert torch.allclose(new.segment.state.z_H[[0, 3]], fast.carry.z_H[[0, 3]])


def test_a_head_that_always_halts_stays_the_minimum_and_one_that_never_does_the_maximum():
    eager = always(objective(halt_min_steps=2, halt_exploration_prob=0.0), 9.0)
    never = always(objective(halt_exploration_prob=0.0), -9.0)
    for obj, expected in ((eager, [1, 2, 1, 2]), (never, [1, 2, 3, 1])):
        seen = []
        for i in range(4):
            obj.accumulate(i * BATCH)
            seen.append(int(obj.carry.steps[0]))
        assert seen == expected


def test_figures_count_only_rows_that_halted():
    obj = always(objective(halt_exploration_prob=0.0), -9.0)
    for i in range(2):
        figures = obj.accumulate(i * BATCH).figures
        assert int(figures["count"]) == 0 and float(figures["halt_rate"]) == 0
    figures = obj.accumulate(2 * BATCH).figures
    assert int(figures["count"]) == BATCH
    assert float(figures["train/reasoning_steps"]) == 3
    assert float(figures["forced_halt_rate"]) == 1 and float(figures["halt_rate_learned"]) == 0


@pytest.mark.parametrize("kind", ["bce", "q_learning", "act", "ponder"])
def test_the_halting_head_learns(kind):
    obj = objective(kind)
    obj.accumulate(0)
    assert (obj.model.q_head.bias.grad != 0).any()


@pytest.mark.parametrize("kind", ["act", "ponder"])
def test_the_penalty_alone_reaches_the_head(kind):
    weight = "act_penalty" if kind == "act" else "ponder_weight"
    grads = []
    for value in (0.0, 1.0):
        obj = objective(kind, **{weight: value})
        obj.accumulate(0)
        grads.append(obj.model.q_head.bias.grad.clone())
    assert not torch.allclose(grads[0], grads[1])


@pytest.mark.parametrize("kind", ["act", "ponder"])
def test_answers_before_the_minimum_do_not_count(kind):
    eager = always(objective(kind, halt_min_steps=3), 9.0)
    assert float(eager.accumulate(0).figures["train/reasoning_steps"]) == pytest.approx(3)
    free = always(objective(kind), 9.0)
    assert float(free.accumulate(0).figures["train/reasoning_steps"]) == pytest.approx(1, abs=0.01)


def test_the_carry_goes_on_bit_for_bit():
    whole, cut = objective(), objective()
    for i in range(3):
        whole.accumulate(i * BATCH)
        cut.accumulate(i * BATCH)
    again = objective()
    again.load_state_tensors({k: v.clone() for k, v in cut.state_tensors().items()})
    for obj in (whole, again):
        obj.model.zero_grad()
        obj.accumulate(3 * BATCH)
    for a, b in zip(gradients(whole.model), gradients(again.model), strict=True):
        assert torch.equal(a, b)
    assert objective().state_tensors() == {}


class Replayed:
    """Stands in for a recorded update: runs on the memory of the first one's examples."""

    def __init__(self, run, parameters, inputs):
        self.run, self.resident = run, [one.resident(torch.device("cpu")) for one in inputs]

    def replay(self, inputs):
        for one, resident in zip(inputs, self.resident, strict=True):
            one.write_into(resident)
        return self.run(self.resident)


@pytest.mark.parametrize("kind", ["bce", "q_learning", "ponder"])
def test_replayed_updates_are_the_same(kind):
    """The carry stays in one place, where a recorded update would look for it."""
    plain, replayed = objective(kind, max_steps=4), objective(kind, max_steps=4)
    replayed.replay_by(partial(Replayer, always=True, record=Replayed))
    places = set()
    for position in range(0, 7 * BATCH, BATCH):
        expected, found = plain.accumulate(position), replayed.accumulate(position)
        assert found.loss_nats == expected.loss_nats
        assert found.figures.keys() == expected.figures.keys()
        for name, value in expected.figures.items():
            assert torch.equal(found.figures[name], value), name
        if replayed.carry is not None:
            places.add(tuple(part.data_ptr() for part in replayed.carry))
            for name, part in plain.state_tensors().items():
                assert torch.equal(replayed.state_tensors()[name], part), name
    assert replayed.launching == "updates are replayed as a CUDA graph"
    assert len(places) == (0 if kind == "ponder" else 1)
    replayed.load_state_tensors({n: t.clone() for n, t in plain.state_tensors().items()})
    assert {tuple(part.data_ptr() for part in replayed.carry or ())} == (places or {()})


def test_labels_that_are_padding_do_not_count():
    logits = torch.randn(1, 3, 5, dtype=torch.float64)
    labels = torch.tensor([[2, 0, 4]])
    expected = torch.nn.functional.cross_entropy(logits[0, [0, 2]], labels[0, [0, 2]])
    assert float(row_nats(logits, labels, "softmax")[0]) == pytest.approx(float(expected))


def test_stablemax_by_hand():
    logits = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    nats = stablemax_nats(logits, torch.tensor([1]))  # s = 2, 1/2, 1
    assert float(nats) == pytest.approx(np.log(3.5 / 0.5))
    nats.sum().backward()
    assert logits.grad.isfinite().all()
    objective(loss_type="stablemax").accumulate(0)
