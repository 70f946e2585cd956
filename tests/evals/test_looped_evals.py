"""Loss by depth and with exits, against an evaluation of each depth by itself."""

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.evals.expert_choice import expert_choices
from mixlab.evals.language_modelling import evaluate
from mixlab.evals.looped import loss_by_depth, loss_with_exits
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
    rows = loss_by_depth(model, batches(), 7)
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
    by_depth = {row.steps: row.loss_nats for row in loss_by_depth(model, batches(), 4)}
    least = 2 if halting == "kl_exit" else 1
    assert (last.mean_steps, first.mean_steps, last.max_steps) == (4, least, 4)
    assert last.loss_nats == pytest.approx(by_depth[4], rel=1e-5)
    assert first.loss_nats == pytest.approx(by_depth[least], rel=1e-5)


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
