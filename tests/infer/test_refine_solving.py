"""Early exit and rollouts: leaving early changes nobody else's answer."""

import pytest
import torch

from mixlab.core.config import decode
from mixlab.infer.refinement import Refining, solve, solve_by_rollouts
from mixlab.nn.recursion.halting import act_weights, from_the_minimum
from mixlab.nn.recursion.refiner import RefinerConfig, build_refiner


def model(kind="bce", **halting):
    built = build_refiner(
        decode(
            RefinerConfig,
            {
                "vocab_size": 6, "grid": [4, 4], "d_model": 8, "H_cycles": 1, "L_cycles": 1,
                "block": {
                    "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 4},
                    "channel_mixer": {"kind": "mlp", "d_ff": 12},
                },
                "halting": {"kind": kind, "halt_max_steps": 5, **halting},
            },
        ),
        seed=1,
    ).double()  # fmt: skip
    if built.q_head is not None:
        torch.nn.init.normal_(built.q_head.weight, generator=torch.Generator().manual_seed(2))
        torch.nn.init.zeros_(built.q_head.bias)
    return built


def questions(n=8):
    return torch.randint(1, 6, (n, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["bce", "q_learning", "act", "ponder"])
def test_early_exit_is_each_puzzle_by_itself(kind):
    net, x = model(kind), questions()
    threshold = float(solve(net, x, max_steps=1).scores.median())
    together = solve(net, x, exit_threshold=threshold)
    assert len(set(together.steps.tolist())) > 1, "some must leave before others"
    for i in range(len(x)):
        alone = solve(net, x[i : i + 1], exit_threshold=threshold)
        assert torch.equal(alone.answers[0], together.answers[i])
        assert alone.steps[0] == together.steps[i]
        # What it was at that segment with everybody still there.
        full = solve(net, x, max_steps=int(alone.steps[0]))
        assert torch.equal(full.answers[i], together.answers[i])


def test_threshold_and_minimum_decide_the_steps():
    net, x = model(halt_min_steps=2), questions()
    assert (solve(net, x, exit_threshold=-1e9).steps == 2).all()
    assert (solve(net, x, exit_threshold=1e9).steps == 5).all()
    assert (solve(model("fixed"), x, exit_threshold=-1e9).steps == 5).all()
    assert (solve(net, x).steps == 5).all()


@pytest.mark.parametrize("least", [1, 3])
def test_act_answers_by_the_weighted_mean(least):
    net, x = model("act", halt_min_steps=least), questions(3)
    under_way, logits, halting = Refining(net, x), [], []
    with torch.no_grad():
        state = net.initial_state(x)
        for _ in range(5):
            step = under_way.advance()
            out = net(state, x)
            state = out.state
            logits.append(out.logits)
            halting.append(out.halt_logits)
    weights, _ = act_weights(from_the_minimum(net.cfg.halting, torch.cat(halting, dim=1)))
    assert (weights[:, least - 1] > 0).all() and (weights[:, : least - 1] == 0).all()
    mean = sum(w[:, None, None] * y for w, y in zip(weights.unbind(1), logits, strict=True))
    torch.testing.assert_close(step.logits, mean)


def test_rollouts_keep_the_best_score():
    net, x = model(), questions()
    clean = solve(net, x)
    one = solve_by_rollouts(net, x, num_rollouts=1, rollout_noise_std=1.0, seed=0)
    assert torch.equal(one.answers, clean.answers)
    many = solve_by_rollouts(net, x, num_rollouts=4, rollout_noise_std=1.0, seed=0)
    assert (many.scores >= clean.scores).all() and (many.scores > clean.scores).any()
    assert (many.steps == 4 * 5).all()
    again = solve_by_rollouts(net, x, num_rollouts=4, rollout_noise_std=1.0, seed=0)
    assert torch.equal(many.answers, again.answers)
