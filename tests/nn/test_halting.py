"""Halting: decisions, targets and weights by hand, and a gradient for every penalty."""

import math

import pytest
import torch
from torch import tensor

from mixlab.nn.recursion.halting import (
    ActConfig,
    BceConfig,
    FixedConfig,
    PonderConfig,
    QLearningConfig,
    act_weights,
    continue_target,
    from_the_minimum,
    least_steps,
    ponder_divergence,
    ponder_weights,
    wants_halt,
)


def logit(*p):
    return torch.tensor([p], dtype=torch.float64).logit()


def test_a_row_halts_when_its_head_says_so_and_not_before_its_minimum():
    cfg = BceConfig(halt_max_steps=4, halt_min_steps=2)
    logits = tensor([[1.0], [1.0], [-1.0], [1.0]])
    wants = wants_halt(cfg, logits, tensor([1, 2, 3, 2]), tensor([0, 0, 0, 3]))
    assert wants.tolist() == [False, True, False, False]
    assert not wants_halt(FixedConfig(), None, tensor([3]), tensor([0])).any()


def test_q_learning_halts_when_halting_is_worth_more():
    logits = tensor([[1.0, 2.0], [2.0, 1.0]])
    wants = wants_halt(QLearningConfig(), logits, tensor([1, 1]), tensor([0, 0]))
    assert wants.tolist() == [False, True]


def test_going_on_is_worth_the_better_choice_unless_the_next_is_the_last():
    cfg = QLearningConfig(halt_max_steps=3)
    target = continue_target(cfg, tensor([[0.0, 2.0], [0.0, 2.0]]), tensor([2, 3]))
    assert target.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0.5])


def test_exploration_respects_its_probability():
    cfg = BceConfig(halt_max_steps=5, halt_exploration_prob=0.3)
    drawn = least_steps(cfg, 10_000, torch.Generator().manual_seed(0))
    explores = drawn > 0
    # five standard deviations of a binomial with 10,000 draws
    assert abs(float(explores.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5
    assert set(drawn[explores].tolist()) == {2, 3, 4, 5}
    assert not least_steps(FixedConfig(), 100, torch.Generator()).any()


def test_act_weights_by_hand():
    weights, cost = act_weights(logit(0.5, 0.3, 0.4, 0.9))
    assert weights[0].tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0])
    assert float(cost) == pytest.approx(3 + 0.2)
    weights, cost = act_weights(logit(0.1, 0.1))  # never full: the last takes the rest
    assert weights[0].tolist() == pytest.approx([0.1, 0.9])
    assert float(cost) == pytest.approx(2 + 0.9)


def test_ponder_weights_by_hand():
    weights = ponder_weights(logit(0.5, 0.2, 0.7))
    assert weights[0].tolist() == pytest.approx([0.5, 0.1, 0.4])
    assert float(ponder_divergence(ponder_weights(logit(0.2, 0.2, 0.2)), 0.2)) > 0
    exact = torch.tensor([[0.5, 0.25]], dtype=torch.float64) / 0.75
    assert float(ponder_divergence(exact, 0.5)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cfg", [ActConfig, PonderConfig])
def test_no_weight_falls_before_the_minimum(cfg):
    logits = from_the_minimum(cfg(halt_max_steps=4, halt_min_steps=3), logit(0.9, 0.8, 0.3, 0.5))
    weights = act_weights(logits)[0] if cfg is ActConfig else ponder_weights(logits)
    assert weights[0].tolist() == pytest.approx([0.0, 0.0, 0.3, 0.7])
    assert torch.isfinite(ponder_divergence(weights, 0.2)).all()


@pytest.mark.parametrize("penalty", ["act", "ponder"])
def test_every_penalty_has_a_gradient(penalty):
    logits = logit(0.2, 0.3, 0.1).requires_grad_()
    if penalty == "act":
        act_weights(logits)[1].sum().backward()
    else:
        ponder_divergence(ponder_weights(logits), PonderConfig().ponder_prior).sum().backward()
    assert (logits.grad[:, :-1] != 0).all()
    assert ActConfig.unrolls and PonderConfig.unrolls
