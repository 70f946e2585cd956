"""Loss by depth and with exits, against an evaluation of each depth by itself."""

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.evals.expert_choice import expert_choices
from mixlab.evals.language_modelling import evaluate
from mixlab.evals.looped import (
    WithExits,
    loss_with_exits,
    read_exits,
    search_threshold,
    shuffled_nats,
)
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.nn.recursion.loop_pass import Loops

BLOCK = {
    "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
    "channel_mixer": {"kind": "moe", "n_experts": 3, "n_active_experts": 1, "d_expert": 8,
                      "norm_topk_prob": False},
}  # fmt: skip


def looped(halting):
    tree = {
        "vocab_size": 31, "d_model": 16, "n_layers": 4, "blocks": {"only": BLOCK},
        "recursion": {"kind": "looped", "halting": {"kind": halting}},
    }  # fmt: skip
    model = build_model(decode(LanguageModelConfig, tree), 0)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    return model


def batches():
    x = torch.randint(31, (6, 13), generator=torch.Generator().manual_seed(3))
    targets = x[:, 1:].clone()
    targets[0, :4] = -100
    whole = Batch(x[:, :-1], targets, torch.zeros(6, 12, dtype=torch.int32))
    return whole.split([4, 2])


def test_one_pass_gives_the_loss_of_every_depth():
    model = looped("fixed").train()
    rows, quality = read_exits(model, batches(), 7)
    assert quality is None, "no token may leave"
    assert model.training
    for row in rows:
        want = evaluate(model, batches(), np.ones(31), loops=Loops(row.steps))
        # Both in float32, in another order.
        assert row.loss_nats == pytest.approx(want.loss_nats, rel=1e-5)
        assert row.accuracy == pytest.approx(want.accuracy)
    assert [row.steps for row in rows] == list(range(1, 8))
    default = evaluate(model, batches(), np.ones(31)).loss_nats
    assert default == pytest.approx(rows[3].loss_nats, rel=1e-5), "evaluated at the trained depth"


@pytest.mark.parametrize("halting", ["gate", "kl_exit"])
def test_exits_are_counted_and_scored(halting):
    model = looped(halting)
    never, always = {"gate": (1.0, 1e-9), "kl_exit": (0.0, 1e9)}[halting]
    last, first = loss_with_exits(model, batches(), [never, always])
    by_depth = {row.steps: row.loss_nats for row in read_exits(model, batches(), 4)[0]}
    least = 2 if halting == "kl_exit" else 1
    assert (last.mean_steps, first.mean_steps, last.max_steps) == (4, least, 4)
    assert last.loss_nats == pytest.approx(by_depth[4], rel=1e-5)
    assert first.loss_nats == pytest.approx(by_depth[least], rel=1e-5)
    n_tokens = 6 * 12
    assert last.halt_histogram == [0, 0, 0, n_tokens]
    assert first.halt_histogram[least - 1] == n_tokens == sum(first.halt_histogram)


@pytest.mark.parametrize(
    ("max_rise", "chosen", "tried"),
    [
        (0.02, 0.5, [0.2, 0.5, 0.8]),
        (0.01, 0.8, [0.5, 0.8]),
        (0.0, 0.9, [0.8, 0.9]),
        (1.0, 0.2, [0.2, 0.5, 0.8]),
        (-1.0, None, [0.8, 0.9]),
    ],
)
def test_the_fewest_steps_within_the_budget_are_found(max_rise, chosen, tried):
    rows = {t: WithExits(t, loss, steps, 4, []) for t, loss, steps in
            ((0.2, 3.30, 1.5), (0.5, 3.02, 2.5), (0.8, 3.01, 3.0), (0.9, 2.99, 3.9))}  # fmt: skip
    measured, found = search_threshold(rows.__getitem__, sorted(rows), 3.0, max_rise)
    assert (found and found.exit_threshold) == chosen
    assert [row.exit_threshold for row in measured] == tried


def test_the_quality_of_a_gate_is_that_of_the_definition():
    """Against every (token, exit) pair by itself, in float64."""
    model = looped("gate")
    _, found = read_exits(model, batches(), 7)
    scores, done = [], []
    for batch in batches():
        keep = (batch.targets != -100).flatten()
        loops = Loops(4, every_exit=True)
        exits = model.trunk(batch.tokens, None, None, loops).loops.exits
        predicted = [(e.h @ model.head_weight.T).argmax(-1).flatten()[keep] for e in exits]
        going = 1.0
        for here, label in zip(exits[:-1], predicted[:-1], strict=True):
            going = going * (1 - here.gate_logits.double().sigmoid().flatten()[keep])
            scores += (1 - going).tolist()
            done += (label == predicted[-1]).tolist()
    pairs = [(a > b) + (a == b) / 2 for a, x in zip(scores, done, strict=True) if x
             for b, y in zip(scores, done, strict=True) if not y]  # fmt: skip
    assert 0 < found.done_frac < 1
    assert found.done_frac == pytest.approx(np.mean(done))
    assert found.auroc == pytest.approx(np.mean(pairs), abs=1e-3)  # float32 may tie or swap a few
    assert sum(row["count"] for row in found.calibration) == len(done)
    assert 0 <= found.ece <= 1


def test_a_rule_without_probability_has_ranks_and_no_ece():
    _, found = read_exits(looped("kl_exit"), batches(), 4)
    assert found.ece is None and found.auroc > 0.5, "what moves less changes its token less often"
    n_pairs = 2 * (6 * 12 - 4)  # the second and third of four exits; four tokens are no targets
    assert sum(row["count"] for row in found.calibration) == n_pairs


def test_random_inputs_cost_what_the_model_takes_from_its_input():
    """A model whose output is its input's own token, asked for that very token."""
    model = looped("fixed")
    own = [batch._replace(targets=batch.tokens) for batch in batches()]
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
    assert true_nats(model, own) < shuffled_nats(model, own, seed=0) - 1
    model.apply(_forget)
    assert true_nats(model, own) == pytest.approx(shuffled_nats(model, own, seed=0))


def true_nats(model, batches):
    return read_exits(model, batches, 4)[0][-1].loss_nats


def _forget(module):
    if isinstance(module, torch.nn.Embedding):
        torch.nn.init.constant_(module.weight, 0.1)


def test_experts_are_asked_about_their_last_loop():
    """By a model whose core is written out: the same blocks, one after another."""
    model, (batch, _) = looped("fixed").eval(), batches()
    chosen = expert_choices(model, [batch]).experts
    e = model.blocks[0](model.embed(batch.tokens)).x
    state = None
    for loop in range(4):
        x = model.recursion.enter(state, e)
        for i in (1, 2):
            block = model.blocks[i]
            mixed = block.mix_sequence(x).y
            if loop == 3:
                want = block.channel_mixer.route(block.channel_norm(mixed)).indices
                assert (chosen[f"layer_{i:02d}"] == want.numpy()).all()
            x = block.mix_channels(mixed).y
        state = x
