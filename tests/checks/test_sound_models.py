"""No sound model is flagged: every registered mixer, over several seeds."""

import pytest
import torch
from broken_models.splits import by_document
from tiny_models import CHANNEL_MIXERS, SEQUENCE_MIXERS, context, sound_model, stack

from mixlab.checks import CHECKS, TrainedModel, run_checks
from mixlab.checks.stream import MadeUpShards
from mixlab.data.loader import Loader
from mixlab.nn.channel_mixers import CHANNEL_MIXERS as REGISTERED_CHANNEL
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS as REGISTERED_SEQUENCE
from mixlab.ops.packing import Packing
from mixlab.training.optimizers import OPTIMIZERS

PAIRS = [(sequence, "mlp") for sequence in SEQUENCE_MIXERS]
PAIRS += [("attention", channel) for channel in CHANNEL_MIXERS if channel != "mlp"]
PAIRS += [("gated_deltanet", "moe")]
TRAINING = ("input-use",)  # takes most of the time, so one seed must do


def failures(results):
    return [f"{r.name}: {r.finding}" for r in results if r.verdict == "fail"]


def test_every_registered_mixer_is_among_them():
    assert {m["kind"] for m in SEQUENCE_MIXERS.values()} == set(REGISTERED_SEQUENCE)
    assert {m["kind"] for m in CHANNEL_MIXERS.values()} == set(REGISTERED_CHANNEL)


def subject_of(build, seed):
    loader = Loader(MadeUpShards(500, 61, seed), 32, seed)
    return context(build, loader=loader, splits=by_document(seed))


def passes_all_checks(subject):
    results = run_checks(list(CHECKS.values()), subject)
    assert not failures(results)
    assert {r.verdict for r in results} == {"pass"}


@pytest.mark.parametrize("kind", [*REGISTERED_SEQUENCE, "moe"])
def test_all_variants_of_a_kind_pass_all_checks(kind):
    """One layer each, in one model: most of a check's time goes into starting it."""
    pairs = [(s, c) for s, c in PAIRS if kind == (s if c == "mlp" else c).split()[0]]
    assert len(pairs) > 2
    passes_all_checks(subject_of(lambda: stack(pairs), seed=0))


@pytest.mark.slow
@pytest.mark.parametrize(("sequence", "channel"), PAIRS)
def test_each_variant_alone_passes_all_checks(sequence, channel):
    passes_all_checks(subject_of(lambda: sound_model(sequence, channel), seed=0))


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
@pytest.mark.parametrize("channel", [pytest.param("mlp", marks=pytest.mark.slow), "moe"])
def test_all_kinds_in_one_stack_pass_at_other_seeds(channel, seed):
    checks = [entry for name, entry in CHECKS.items() if name not in TRAINING]
    pairs = [(sequence, channel) for sequence in SEQUENCE_MIXERS]
    results = run_checks(checks, subject_of(lambda: stack(pairs, seed), seed))
    assert not failures(results)


QUICK = [entry for entry in CHECKS.values() if entry.is_quick]


@pytest.mark.parametrize("seq_len", [1, 2, 5])
def test_short_sequences_are_no_fault(seq_len):
    assert not failures(run_checks(QUICK, context(seq_len=seq_len)))


def test_untied_head_and_scaled_embeddings_pass():
    def build():
        return sound_model(tie_embeddings=False, scale_embeddings=True)

    assert not failures(run_checks(QUICK, context(build)))


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize("lr", [1e-5, 1e-2])
def test_float32_weights_take_the_updates_of_every_optimizer(kind, lr):
    optimizer = OPTIMIZERS[kind](lr=lr)
    (result,) = run_checks([CHECKS["master-weights"]], context(optimizer=optimizer))
    assert result.verdict == "pass", result.finding


def test_a_trained_model_passes_what_is_asked_of_runs():
    """Trained on a text in which every token is followed by one other."""
    shards = MadeUpShards(4000, 61, seed=0)
    shards.tokens = (torch.arange(4000) * 7 % 61).numpy()
    shards.eos_id = 10_000
    loader = Loader(shards, 32, seed=0)
    model = sound_model()
    optimizer = OPTIMIZERS["adamw"](lr=5e-3).build(model.named_parameters())
    subject = context()
    for step in range(60):
        subject.accumulate(model, [loader.batch(8 * step, 8)])
        optimizer.step(1.0)
        optimizer.zero_grad()
    run = TrainedModel(model.eval(), loader, 1.0, 2.0, 4.1, 4.11)
    checks = [CHECKS["input-use"], CHECKS["unigram"]]
    results = run_checks(checks, context(trained=run))
    assert [r.verdict for r in results] == ["pass", "pass"], failures(results)


def test_the_random_state_and_the_model_stay_as_they_are():
    model = sound_model("gated_deltanet", "moe bias")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    run_checks(QUICK, context(lambda: sound_model("attention", "moe")))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_same_figures_every_time():
    first, second = ([r.row() for r in run_checks(QUICK, context())] for _ in range(2))
    assert first == second


LOOPED = {
    "fixed": {"depth": {"kind": "fixed", "steps": 2}},
    "kl_exit": {
        "halting": {"kind": "kl_exit"},
        "injection": "concat",
        "depth": {"kind": "uniform", "halt_max_steps": 2},
    },
    "gate": {
        "halting": {"kind": "gate"},
        "injection": "linear",
        "state_init": "zeros",
        "depth": {"kind": "fixed", "steps": 2},
    },
    "cut": {"bp_max_loops": 2, "H_cycles": 2, "depth": {"kind": "uniform", "halt_max_steps": 2}},
}


@pytest.mark.parametrize(
    "name", ["gate", *(pytest.param(n, marks=pytest.mark.slow) for n in LOOPED if n != "gate")]
)
def test_looped_models_pass_at_every_depth_and_exit_rule(name):
    channel = "mlp" if name in ("fixed", "kl_exit") else "moe"

    def build():
        recursion = {"kind": "looped", "core_layers": 1, **LOOPED[name]}
        return sound_model("attention", channel, n_layers=3, recursion=recursion)

    passes_all_checks(subject_of(build, seed=0))


@pytest.mark.parametrize("halting", ["fixed", "gate"])
def test_prompts_may_be_read_both_ways_but_answers_may_not(halting, monkeypatch):
    def build():
        recursion = {"kind": "looped", "halting": {"kind": halting},
                     "depth": {"kind": "fixed", "steps": 2}}  # fmt: skip
        return sound_model("attention", "mlp", n_layers=4, recursion=recursion)

    subject = context(build, prefix_lm=True, thorough=False)
    (result,) = run_checks([CHECKS["causality"]], subject)
    assert result.verdict == "pass", result.finding
    whole = Packing.mask
    monkeypatch.setattr(Packing, "mask", lambda self, window=None: whole(self, window) | True)
    (result,) = run_checks([CHECKS["causality"]], subject)
    assert result.verdict == "fail", "a mask that hides nothing of the answer is found"
