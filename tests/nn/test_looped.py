"""The contract of looped models: for every depth, injection, start and exit rule."""

import itertools

import pytest
import torch
from looped_models import BLOCK, HALTING, TREE, looped_model, tokens

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, LabError
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.packing import Packing

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums in another order err by some 1e-15

ENTRIES = [*itertools.product(["add", "linear", "concat"], ["input", "zeros", "learned"])]
CALLS = [
    *(({"injection": i, "state_init": s}, Loops(r)) for (i, s), r in zip(
        ENTRIES, itertools.cycle([1, 2, 5]), strict=False)),
    *(({}, Loops(r)) for r in (1, 2, 3, 5)),
    *(({"halting": HALTING[h]}, Loops(r, may_exit=True)) for h in HALTING for r in (1, 2, 6)),
    *(({"halting": HALTING[h], "depth": {"kind": "uniform", "halt_min_steps": 2}},
       Loops(r, may_exit=True, exit_threshold=t))
      for h, r, t in (("gate", 3, 0.2), ("gate", 4, 0.9), ("kl_exit", 4, 0.1))),
    ({"halting": HALTING["gate"], "H_cycles": 2, "L_cycles": 2}, Loops(3, may_exit=True)),
    ({"halting": HALTING["kl_exit"], "H_cycles": 2}, Loops(4, may_exit=True, exit_threshold=0.02)),
    ({"prelude_layers": 0, "coda_layers": 0, "core_layers": 4}, Loops(3)),
    ({"prelude_layers": 0, "coda_layers": 0, "core_layers": 4, "halting": HALTING["gate"],
      "state_init": "zeros"}, Loops(4, may_exit=True)),
]  # fmt: skip
every_call = pytest.mark.parametrize(("settings", "loops"), CALLS, ids=str)


@every_call
def test_no_gradient_and_no_effect_of_later_tokens(settings, loops):
    model = looped_model(**settings)
    kept = []
    model.embed_tokens.register_forward_hook(
        lambda module, inputs, out: kept.append(out.detach().requires_grad_()) or kept[-1]
    )
    x = tokens()
    logits = model(x, loops=loops).logits
    (grad,) = torch.autograd.grad(logits[:, :5].square().sum(), kept[0])
    assert grad[:, :5].abs().amin() > 0 and not grad[:, 5:].any()
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 31
    torch.testing.assert_close(model(changed, loops=loops).logits[:, :5], logits[:, :5], **EXACT)


@every_call
@pytest.mark.parametrize(
    "pieces", [pytest.param([1] * 12, marks=pytest.mark.slow), [5, 1, 1, 3, 2]], ids=str
)
def test_decoding_equals_one_call(settings, loops, pieces):
    model = looped_model(**settings)
    x = tokens()
    want = model(x, loops=loops).logits
    state, found = model.initial_state(3), []
    for piece in x.split(pieces, dim=1):
        out = model(piece, state, loops=loops)
        state = out.state
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), want, **EXACT)


@every_call
def test_rows_do_not_know_their_mates(settings, loops):
    model = looped_model(**settings)
    x = tokens()
    want = model.trunk(x, None, None, loops)
    for rows in ([0], [2, 1], [1, 1, 0, 2]):
        found = model.trunk(x[rows], None, None, loops)
        torch.testing.assert_close(found.h, want.h[rows], **EXACT)
        if want.loops.n_steps is not None:
            assert torch.equal(found.loops.n_steps, want.loops.n_steps[rows])


def test_packed_documents_are_as_if_alone():
    for halting, may_exit in ((None, False), ("gate", True), ("kl_exit", True)):
        settings = {} if halting is None else {"halting": HALTING[halting]}
        model, loops = looped_model(**settings), Loops(4, may_exit=may_exit)
        x = tokens(1)
        packed = model(x, None, Packing(torch.tensor([[0] * 4 + [1] * 8])), loops=loops).logits
        alone = [model(piece, loops=loops).logits for piece in x.split([4, 8], dim=1)]
        torch.testing.assert_close(packed, torch.cat(alone, dim=1), **EXACT)


@pytest.mark.parametrize("injection", ["add", "linear", "concat"])
def test_one_loop_is_the_plain_stack(injection):
    looped = looped_model(injection=injection)
    plain = build_model(decode(LanguageModelConfig, TREE), 1).double().eval()
    plain.load_state_dict(
        {k: v for k, v in looped.state_dict().items() if not k.startswith("recursion.")}
    )
    x = tokens()
    assert torch.equal(looped(x, loops=Loops(1)).logits, plain(x).logits)
    assert not torch.allclose(looped(x, loops=Loops(2)).logits, plain(x).logits)


def test_loops_are_the_definition():
    """By hand: the blocks in a row, the state normed and the normed input added before each."""
    model = looped_model()
    x = tokens()
    e = model.blocks[0](model.embed(x)).x
    norm = torch.nn.functional.rms_norm
    s = model.blocks[2](model.blocks[1](e).x).x
    for _ in range(3):
        entry = norm(s, (16,), eps=1e-6) + norm(e, (16,), eps=1e-6)
        s = model.blocks[2](model.blocks[1](entry).x).x
    want = norm(model.blocks[3](s).x, (16,), eps=1e-6)
    torch.testing.assert_close(model.trunk(x, None, None, Loops(4)).h, want, **EXACT)


def test_every_injection_starts_as_the_sum():
    x = tokens()
    plain, *others = [
        looped_model(injection=i).trunk(x, None, None, Loops(3)).h
        for i in ("add", "linear", "concat")
    ]
    for other in others:
        assert other.shape == plain.shape
    model, summing = looped_model(injection="concat"), looped_model()
    weights = model.state_dict()
    summing.load_state_dict({k: v for k, v in weights.items() if "inject" not in k})
    torch.testing.assert_close(model(x).logits, summing(x).logits, **EXACT)


def test_the_state_stays_bounded():
    """A hundred loops add nothing to the state's size: it is normed whenever it comes back."""
    model = looped_model()
    sizes = []
    core = model.blocks[2]
    core.register_forward_hook(lambda module, inputs, out: sizes.append(float(out.x.std())))
    model(tokens(), loops=Loops(100))
    assert len(sizes) == 100
    assert max(sizes[1:]) < 2 * min(sizes[1:])


def test_tokens_leave_at_different_steps_and_the_threshold_moves_them():
    for name, thresholds in (("gate", (0.3, 0.5, 0.9)), ("kl_exit", (1e-1, 1e-2, 1e-4))):
        model, x = looped_model(halting=HALTING[name]), tokens(8)
        means = []
        for threshold in thresholds:
            loops = Loops(6, may_exit=True, exit_threshold=threshold)
            n_steps = model.trunk(x, None, None, loops).loops.n_steps
            assert int(n_steps.min()) >= 1 and int(n_steps.max()) <= 6
            means.append(float(n_steps.double().mean()))
        assert means == sorted(means) and means[0] < means[-1]
        assert len(n_steps.unique()) > 1


def test_the_threshold_is_the_calls_the_configs_or_the_chosen_one():
    """In this order; before one is chosen, a run without one in its config has a stand-in."""

    def threshold(halting, chosen):
        model = looped_model(halting=halting)
        model.recursion.chosen_threshold = chosen
        return model.recursion.threshold

    open_, named = {"kind": "gate"}, {"kind": "gate", "exit_threshold": 0.3}
    assert (threshold(open_, None), threshold(open_, 0.8)) == (0.5, 0.8)
    assert (threshold(named, None), threshold(named, 0.8)) == (0.3, 0.3)
    model, x = looped_model(halting=open_), tokens(8)
    steps = []
    for chosen, given in ((0.2, None), (None, 0.2), (0.9, None), (0.2, 0.9)):
        model.recursion.chosen_threshold = chosen
        loops = Loops(6, may_exit=True, exit_threshold=given)
        steps.append(model.trunk(x, None, None, loops).loops.n_steps)
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[2], steps[3])
    assert steps[0].sum() < steps[2].sum()


def test_least_steps_hold():
    depth = {"kind": "uniform", "halt_min_steps": 3, "halt_max_steps": 6}
    model = looped_model(halting=HALTING["gate"], depth=depth)
    loops = Loops(may_exit=True, exit_threshold=1e-6)
    assert set(model.trunk(tokens(), None, None, loops).loops.n_steps.flatten().tolist()) == {3}


@pytest.mark.parametrize("halting", [None, "gate", "kl_exit"])
def test_a_token_that_leaves_gives_what_its_exit_gives(halting):
    """With every token leaving at the first chance, all is as in a model of that depth."""
    model = looped_model(**({} if halting is None else {"halting": HALTING[halting]}))
    x = tokens()
    threshold = {"gate": 1e-9, "kl_exit": 1e9}.get(halting)
    first = 2 if halting == "kl_exit" else 1  # there is nothing to compare the first output with
    depth = 5 if halting is None else first
    loops = Loops(5, may_exit=True, exit_threshold=threshold)
    torch.testing.assert_close(model(x, loops=loops).logits, model(x, loops=Loops(depth)).logits)


def test_a_decoding_step_runs_only_the_loops_that_its_token_needs():
    model = looped_model(halting=HALTING["gate"])
    loops = Loops(6, may_exit=True, exit_threshold=1e-9)
    calls = []
    model.blocks[1].register_forward_hook(lambda module, inputs, out: calls.append(out.x.shape[1]))
    state = model.initial_state(1)
    for token in tokens(1, 4).split(1, dim=1):
        state = model(token, state, loops=loops).state
    assert calls == [1, 1, 1, 1]
    state = state._replace(loops=loops._replace(exit_threshold=1.0))
    model(tokens(1, 1), state, loops=Loops(6, may_exit=True, exit_threshold=1.0))
    assert calls[4:] == [1] + [5] * 5  # the deeper loops first catch up with the four before


def test_settings_must_not_change_while_decoding():
    model = looped_model()
    state = model(tokens(), model.initial_state(3), loops=Loops(2)).state
    with pytest.raises(LabError, match="the settings that the state was made with"):
        model(tokens(), state, loops=Loops(3))
    with pytest.raises(LabError, match="depth = 0"):
        model(tokens(), loops=Loops(0))


@pytest.mark.parametrize(
    ("recursion", "start"),
    [
        ({"core_layers": 3}, "recursion.core_layers = 3: expected prelude, core and coda to make"),
        ({"core_layers": 0}, "recursion.core_layers = 0"),
        ({"halt_granularity": "sequence"}, "recursion.halt_granularity = 'sequence'"),
        ({"depth": {"kind": "fixed", "steps": 1}}, "recursion.depth.steps = 1"),
        (
            {"depth": {"kind": "uniform", "halt_min_steps": 6, "halt_max_steps": 5}},
            "recursion.depth.halt_min_steps = 6: expected at most halt_max_steps = 5",
        ),
        ({"depth": {"kind": "poisson", "mean": 9.0}}, "recursion.depth.mean = 9.0"),
        ({"bp_min_loops": 4, "bp_max_loops": 2}, "recursion.bp_min_loops = 4: expected at most"),
        ({"bp_min_loops": 4}, "recursion.bp_max_loops = None"),
        ({"state_init": "learned", "bp_max_loops": 2}, "recursion.state_init = 'learned'"),
        ({"use_act": "perhaps"}, "recursion.use_act = 'perhaps'"),
        ({"halting": {"kind": "q_learning"}}, "recursion.halting.kind = 'q_learning'"),
        ({"injection": "none"}, "recursion.injection = 'none'"),
        ({"depth": {"kind": "fixed", "steps": 900}, "H_cycles": 9}, "recursion.depth = 900"),
    ],
)
def test_rules(recursion, start):
    with pytest.raises(ConfigError) as error:
        decode(LanguageModelConfig, {**TREE, "recursion": {"kind": "looped", **recursion}})
    assert str(error.value).startswith(start)


def test_a_token_mixing_mlp_is_refused():
    """It would see later tokens; only causal mixers stand in the registry of language models."""
    block = {**BLOCK, "sequence_mixer": {"kind": "mlp", "d_ff": 8}}
    with pytest.raises(ConfigError) as error:
        decode(LanguageModelConfig, {**TREE, "blocks": {"full": block}, "pattern": None})
    assert str(error.value).startswith("blocks.full.sequence_mixer.kind = 'mlp'")


def test_the_published_switch():
    def halting(**settings):
        tree = {**TREE, "recursion": {"kind": "looped", **settings}}
        return decode(LanguageModelConfig, tree).recursion.halting.kind

    assert halting(use_act=True) == "gate" and halting(use_act=False) == "fixed"
    assert halting(use_act=True, halting={"kind": "kl_exit"}) == "kl_exit"
