"""How looped models are trained: gradient where it belongs, drawn depths, exact resume."""

import math

import pytest
import torch
from looped_training_models import batch_of, looped

from mixlab.data.loader import Loader
from mixlab.nn.recursion.depth import FixedDepth, PoissonDepth, UniformDepth
from mixlab.nn.recursion.exit import GateHalting, gate_loss, stop_chances
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.cross_entropy import linear_cross_entropy
from mixlab.training.language_modelling import LanguageModelling, accumulate_gradients
from mixlab.training.looped import training_loops, typical_loops
from mixlab.training.optimizers import AdamWConfig


@pytest.mark.parametrize("halting", ["fixed", "gate"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"injection": "linear"}, {"injection": "concat", "state_init": "learned"},
     {"bp_max_loops": 2, "state_init": "zeros"}, {"exit_loss_weight": 0.0}],
    ids=str,
)  # fmt: skip
def test_gradient_reaches_every_parameter(settings, halting):
    model = looped(halting={"kind": halting}, **settings).train()
    accumulate_gradients(model, [batch_of()])
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_the_loss_is_the_last_exit_and_a_share_of_the_others():
    """Against a computation that decodes every depth by a call of its own."""
    model, batch, n = looped(exit_loss_weight=0.5, blocks="plain"), batch_of(), 4

    def nats(steps):
        h = model.trunk(batch.tokens, None, None, Loops(steps)).h
        return linear_cross_entropy(h.flatten(0, 1), model.head_weight, batch.targets.flatten())

    loss = nats(n) + 0.5 * (nats(1) + nats(2) + nats(3)) / 3
    want = torch.autograd.grad(loss / batch.n_targets(), list(model.parameters()))
    metrics = accumulate_gradients(model, [batch], loops=Loops(n, every_exit=True))
    for parameter, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    assert float(metrics.loss_nats) == pytest.approx(float(nats(n).detach()) / batch.n_targets())
    assert float(metrics.figures["reasoning_steps"]) == n


def test_loops_without_gradient_leave_no_graph():
    """Kept numbers do not grow with depth, the core runs as often, and the result is the same."""
    model, x = looped(blocks="plain").train(), batch_of().tokens

    def kept(loops):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            h = model.trunk(x, None, None, loops).h
        return sum(sizes), h

    short, _ = kept(Loops(2, bp_loops=2))
    long, cut = kept(Loops(40, bp_loops=2))
    whole, h = kept(Loops(40))
    # The entry of the first kept loop is one more than in a model of two loops.
    assert long < 1.5 * short < whole / 4
    torch.testing.assert_close(cut, h, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bp_loops", [1, 2, 3])
def test_the_gradient_is_that_of_the_last_loops_from_a_constant_state(bp_loops):
    model, batch = looped(blocks="plain"), batch_of()
    n = 4
    core = [model.blocks[1], model.blocks[2]]
    e = model.blocks[0](model.embed(batch.tokens)).x
    state = None
    for loop in range(n):
        if loop == n - bp_loops and state is not None:
            state = state.detach()
        x = model.recursion.enter(state, e)
        for block in core:
            x = block(x).x
        state = x
    h = model.norm(model.blocks[3](state).x)
    want = torch.autograd.grad(h.square().sum(), list(core[0].parameters()))
    found = model.trunk(batch.tokens, None, None, Loops(n, bp_loops)).h.square().sum()
    for a, b in zip(torch.autograd.grad(found, list(core[0].parameters())), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_autocast_keeps_no_weight_of_the_loops_without_gradient():
    """A cast that is cached without a graph would cut the gradient of the loops that have one."""
    model = looped(blocks="plain").float().train()
    loops = Loops(4, bp_loops=2, every_exit=True)
    accumulate_gradients(model, [batch_of()], compute_dtype=torch.bfloat16, loops=loops)
    for block in model.blocks:
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


# --- the gate -------------------------------------------------------------------------------------


def test_stop_chances_are_those_of_the_definition():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    stop, left = logits.sigmoid(), torch.ones(7, dtype=torch.float64)
    want = []
    for n in range(4):
        want.append(left * stop[n])
        left = left * (1 - stop[n])
    torch.testing.assert_close(stop_chances(logits), torch.stack([*want, left]))


def test_every_part_of_the_gates_loss_has_a_gradient():
    """A penalty that counts steps has none: it must act on their expectation."""
    nats = torch.rand(4, 6, dtype=torch.float64)
    is_target = torch.tensor([True] * 5 + [False])
    for weights in ({"ponder_weight": 0.1}, {"entropy_weight": 0.1}, {}):
        cfg = GateHalting(**{"ponder_weight": 0.0, "entropy_weight": 0.0, **weights})
        logits = torch.full((4, 6), -1.0, dtype=torch.float64, requires_grad=True)
        scores = torch.zeros_like(nats) if weights else nats
        gate_loss(logits, scores, is_target, cfg).loss.backward()
        assert logits.grad[:3, :5].abs().min() > 0
        assert not logits.grad[:, 5].any(), "a token without a target teaches nothing"
    costly = GateHalting(ponder_weight=1.0, entropy_weight=0.0)
    logits = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    gate_loss(logits, torch.zeros_like(nats), is_target, costly).act_penalty.backward()
    assert (logits.grad[:3, :5] < 0).all(), "a costlier step makes stopping likelier"


def test_the_gate_learns_and_the_blocks_do_not_feel_it():
    with_gate, without = looped(halting={"kind": "gate"}), looped()
    missing = without.load_state_dict(with_gate.state_dict(), strict=False)
    assert [name.split(".")[1] for name in missing.unexpected_keys] == ["gate", "gate"]
    for model in (with_gate, without):
        accumulate_gradients(model, [batch_of()], loops=Loops(3, every_exit=True))
    assert with_gate.recursion.gate.weight.grad.abs().sum() > 0
    others = dict(with_gate.named_parameters())
    for name, parameter in without.named_parameters():
        torch.testing.assert_close(others[name].grad, parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bp_loops", [None, 1])
def test_each_penalty_by_itself_reaches_the_halting_head(bp_loops):
    """Through the whole model, also where earlier loops have no gradient."""

    def gradient(**weights):
        settings = {"ponder_weight": 0.0, "entropy_weight": 0.0, **weights}
        model = looped(halting={"kind": "gate", **settings})
        loops = Loops(4, bp_loops, every_exit=True)
        metrics = accumulate_gradients(model, [batch_of()], loops=loops)
        gate = model.recursion.gate
        return torch.cat([gate.weight.grad.flatten(), gate.bias.grad]), metrics.figures

    plain, _ = gradient()
    for weights in ({"ponder_weight": 1.0}, {"entropy_weight": 1.0}):
        with_penalty, figures = gradient(**weights)
        assert (with_penalty - plain).abs().max() > 1e-4, weights
    assert float(gradient(ponder_weight=0.5)[1]["act_penalty"]) == pytest.approx(
        0.5 * float(figures["expected_steps"])
    )


def test_kl_exit_has_no_head_and_no_penalty_so_training_is_that_of_fixed_halting():
    models = [looped(halting={"kind": kind}) for kind in ("fixed", "kl_exit")]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    for model in models:
        accumulate_gradients(model, [batch_of()])
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a.grad, b.grad)


# --- depth ----------------------------------------------------------------------------------------

DEPTHS = [
    FixedDepth(steps=3), UniformDepth(halt_min_steps=2, halt_max_steps=5),
    PoissonDepth(mean=4.0, halt_max_steps=8), PoissonDepth(mean=2.5, sigma=0.2, halt_min_steps=2),
]  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_drawn_depths_have_the_stated_chances(depth):
    draws = [depth.draw(7, position) for position in range(0, 8 * 3000, 8)]
    chances = depth.chances()
    assert sum(chances.values()) == pytest.approx(1)
    for steps, chance in chances.items():
        # Five standard errors of a share of 3000 draws: one in a million by chance.
        error = 5 * math.sqrt(chance * (1 - chance) / 3000) + 1e-12
        assert abs(draws.count(steps) / 3000 - chance) <= error
    assert set(draws) <= set(chances)
    assert draws == [depth.draw(7, position) for position in range(0, 8 * 3000, 8)]
    if len(chances) > 1:
        assert draws != [depth.draw(8, position) for position in range(0, 8 * 3000, 8)]


def test_the_poisson_is_log_normal_before_its_cut():
    """Against draws made the way that the source writes it."""
    wide = PoissonDepth(mean=6.0, sigma=0.5, halt_max_steps=400)
    assert wide.mean_steps == pytest.approx(6.0, rel=1e-6)
    g = torch.Generator().manual_seed(0)
    n = math.log(5.0) - 0.125 + 0.5 * torch.randn(200_000, generator=g, dtype=torch.float64)
    draws = 1 + torch.poisson(n.exp(), generator=g)
    for steps in (1, 4, 6, 12):
        share = float((draws == steps).double().mean())
        assert wide.chances()[steps] == pytest.approx(share, abs=5e-3)


def test_the_ramp_is_a_function_of_the_update():
    cfg = looped(bp_min_loops=2, bp_max_loops=5, bp_ramp_updates=9).cfg.recursion
    assert [cfg.bp_loops(i) for i in range(11)] == [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    assert training_loops(cfg, 1, 0, 0).bp_loops == 2
    assert typical_loops(cfg).bp_loops == 5


def test_training_goes_on_to_the_bit_after_a_break():
    """Depth and truncation come from the position alone: nothing of them is in a checkpoint."""
    settings = {
        "bp_min_loops": 1, "bp_max_loops": 3, "bp_ramp_updates": 5, "halting": {"kind": "gate"},
        "depth": {"kind": "poisson", "mean": 3.0},
    }  # fmt: skip

    def sitting(model, optimizer, updates):
        objective = LanguageModelling(model, Loader(made_up(), 16, 5), batch_size=4)
        depths = []
        for update in updates:
            metrics = objective.accumulate(4 * update)
            depths.append(int(metrics.figures["reasoning_steps"]))
            optimizer.step(1.0)
            optimizer.zero_grad()
        return depths

    def new():
        model = looped(**settings).train()
        return model, AdamWConfig(lr=1e-3).build(model.named_parameters())

    whole, first, second = new(), new(), new()
    depths = sitting(*whole, range(8))
    assert len(set(depths)) > 1
    found = sitting(*first, range(5))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_tensors(first[1].state_tensors())
    found += sitting(*second, range(5, 8))
    assert found == depths
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


def made_up():
    from mixlab.checks.stream import MadeUpShards

    return MadeUpShards(2000, 31, seed=0)


def test_balance_losses_count_a_layer_once_whatever_its_loops():
    """The mean over a layer's loops; a mixture that is always the same has the loss of one run."""
    model = looped(channel="moe").train()
    shallow = model.trunk(batch_of().tokens, None, None, Loops(1)).aux_loss
    deep = model.trunk(batch_of().tokens, None, None, Loops(12)).aux_loss
    assert shallow.requires_grad and deep.requires_grad
    # A balance loss is 1 for even use; loops may use experts a little more or less evenly.
    assert float(deep.detach()) == pytest.approx(float(shallow.detach()), rel=0.3)
    cut = model.trunk(batch_of().tokens, None, None, Loops(12, bp_loops=1)).aux_loss
    (grad,) = torch.autograd.grad(cut, [model.blocks[1].channel_mixer.gate.weight])
    assert grad.any()
