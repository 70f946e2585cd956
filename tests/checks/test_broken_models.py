"""Every broken model is caught by the check that was made for it."""

import numpy as np
import pytest
import torch
from broken_models.attention_masks import (
    AllOnesMask,
    ForgetsDocuments,
    ForgetsLate,
    NoMask,
    with_attention,
)
from broken_models.attention_outputs import (
    CentredOverRows,
    CentredOverTime,
    LeaksAtASeam,
    LeaksWhenPacked,
    ScalesInTraining,
    dropping,
)
from broken_models.channels_and_weights import (
    bfloat16_weights,
    context_free,
    dead_expert,
    dead_parameter,
    expert_choice,
    frozen_head,
    frozen_weights,
    loud_start,
    untied_head,
)
from broken_models.losses import (
    UnshiftedLoader,
    bfloat16_evaluator,
    inflated_evaluator,
    mean_of_means,
    shifted_twice,
    unshifted,
)
from broken_models.recurrent_states import (
    CarriesOverBatches,
    CarriesOverRows,
    CentredConv,
    DroppedState,
    StateOverDocuments,
    TailOverDocuments,
    with_conv,
    with_deltanet,
)
from broken_models.splits import duplicated_documents, stride_one_windows
from tiny_models import CHANNEL_MIXERS, SEQUENCE_MIXERS, context, sound_model

from mixlab.checks import CHECKS, TrainedModel, input_use, run_checks
from mixlab.checks.stream import MadeUpShards
from mixlab.data.loader import Loader


def made_up_loader(seq_len=32):
    return Loader(MadeUpShards(100 * seq_len + 1, 61, seed=1), seq_len, seed=0)


def stuck_run(model, loss=3.98, earlier=3.99):
    """A run that came to rest at the unigram entropy."""
    return TrainedModel(
        model=model.eval(), loader=made_up_loader(), loss_nats=loss, earlier_loss_nats=earlier,
        unigram_entropy_nats=4.0, ln_vocab_nats=4.11,
    )  # fmt: skip


BROKEN = {
    "dropout stays on": ("modes", lambda: context(lambda: dropping(0.01))),
    "dropout stays on where it is configured": (
        "modes", lambda: context(lambda: dropping(0.0), build_noisy=lambda: dropping(0.1))
    ),
    "scaled in training only": ("modes", lambda: context(lambda: with_attention(ScalesInTraining))),
    "a leak where two chunks meet": (
        "causality", lambda: context(lambda: with_attention(LeaksAtASeam), seq_len=150)
    ),
    "a leak among several documents": (
        "causality", lambda: context(lambda: with_attention(LeaksWhenPacked))
    ),
    "normalised over time": ("causality", lambda: context(lambda: with_attention(CentredOverTime))),
    "mean over the batch": ("batch-rows", lambda: context(lambda: with_attention(CentredOverRows))),
    "head that is said to be tied": ("gradients", lambda: context(untied_head)),
    "head that is tied but not trained": ("gradients", lambda: context(frozen_head)),
    "frozen weights": ("gradients", lambda: context(frozen_weights)),
    "no causal mask": ("causality", lambda: context(lambda: with_attention(NoMask))),
    "all-ones additive mask": ("causality", lambda: context(lambda: with_attention(AllOnesMask))),
    "convolution looks ahead": ("causality", lambda: context(lambda: with_conv(CentredConv))),
    "expert choice, over time": ("causality", lambda: context(expert_choice)),
    "expert choice, over rows": ("batch-rows", lambda: context(expert_choice)),
    "dropped state": ("stepwise", lambda: context(lambda: with_deltanet(DroppedState))),
    "carry from another row": (
        "batch-rows", lambda: context(lambda: with_deltanet(CarriesOverRows))
    ),
    "carry from another batch": (
        "memory", lambda: context(lambda: with_deltanet(CarriesOverBatches))
    ),
    "attention over documents": (
        "packing", lambda: context(lambda: with_attention(ForgetsDocuments))
    ),
    "state over documents": (
        "packing", lambda: context(lambda: with_deltanet(StateOverDocuments))
    ),
    "convolution over documents": (
        "packing", lambda: context(lambda: with_conv(TailOverDocuments))
    ),
    "dead parameter": ("gradients", lambda: context(dead_parameter)),
    "dead expert": ("gradients", lambda: context(dead_expert)),
    "labels not shifted, in the loader": (
        "labels", lambda: context(loader=UnshiftedLoader(made_up_loader()))
    ),
    "labels not shifted, in the loss": ("labels", lambda: context(accumulate=unshifted)),
    "labels shifted twice": ("labels", lambda: context(accumulate=shifted_twice)),
    "mean of means": ("loss-mean", lambda: context(accumulate=mean_of_means)),
    "bfloat16 weights": ("master-weights", lambda: context(bfloat16_weights)),
    "bfloat16 evaluator": ("evaluator", lambda: context(evaluate=bfloat16_evaluator)),
    "inflated evaluator": ("evaluator", lambda: context(evaluate=inflated_evaluator)),
    "loud start": ("unigram", lambda: context(loud_start)),
    "stuck at the unigram entropy": (
        "unigram", lambda: context(trained=stuck_run(context_free()))
    ),
    "ignores its input, as a recipe": ("input-use", lambda: context(context_free)),
    "ignores its input, as a run": (
        "input-use", lambda: context(trained=stuck_run(context_free()))
    ),
    "overlapping windows dealt at random": (
        "split", lambda: context(splits=stride_one_windows())
    ),
    "duplicated documents": ("split", lambda: context(splits=duplicated_documents())),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_is_caught_by_its_check(name):
    check, make = BROKEN[name]
    (result,) = run_checks([CHECKS[check]], make())
    assert result.verdict == "fail", f"{name}: {result.finding}"
    assert result.finding.measured and result.finding.meaning


def test_every_check_has_something_that_it_catches():
    assert {check for check, _ in BROKEN.values()} == set(CHECKS)


def test_a_mask_that_is_missing_passes_what_it_does_not_concern():
    """Checks are apart: one fault does not turn the whole table red."""
    results = run_checks(list(CHECKS.values()), context(lambda: with_attention(NoMask)))
    failed = {result.name for result in results if result.verdict == "fail"}
    assert failed == {"causality", "stepwise", "packing"}


@pytest.mark.parametrize(("window", "more", "verdict"), [(100, 0, "pass"), (100, 1, "fail")])
def test_a_window_that_ends_late_in_decoding_is_reached(window, more, verdict):
    """It shows only where the window has dropped tokens, past the usual length of this check."""
    block = {
        "sequence_mixer": {**SEQUENCE_MIXERS["attention"], "window": window},
        "channel_mixer": CHANNEL_MIXERS["mlp"],
    }

    def build():
        model = sound_model(blocks={"b": block})
        mixer = model.blocks[1].sequence_mixer
        mixer.__class__, mixer.more = ForgetsLate, more
        return model

    (result,) = run_checks([CHECKS["stepwise"]], context(build))
    assert result.verdict == verdict, result.finding


def test_of_two_faults_each_leaves_the_other_check_alone():
    """Rows that meet are no leak from later tokens, though all are tried in one batch."""
    names = [CHECKS[name] for name in ("causality", "batch-rows")]
    rows = run_checks(names, context(lambda: with_attention(CentredOverRows)))
    assert [result.verdict for result in rows] == ["pass", "fail"]


def test_a_gap_within_its_noise_is_no_verdict(monkeypatch):
    """Neither that the input is ignored, nor that it is used."""
    gaps = {16: (0.3, 0.4), 100: (0.3, 0.02)}

    def nats(model, tokens, targets, *more):
        mean, deviation = gaps[len(tokens)]
        is_true = torch.equal(tokens[:, 1:], targets[:, :-1])
        rows = 0.0 if is_true else mean + deviation * np.linspace(-1.7, 1.7, len(tokens))
        return np.zeros(tokens.shape) + np.reshape(rows, (-1, 1))

    monkeypatch.setattr(input_use, "token_nats", nats)
    run = stuck_run(sound_model(), loss=3.5)
    check = [CHECKS["input-use"]]
    (found,) = run_checks(check, context(trained=run))
    assert found.verdict == "pass", "more text decides"
    gaps[100] = (0.3, 0.9)
    (found,) = run_checks(check, context(trained=run))
    assert found.verdict == "not applicable" and "to tell" in found.finding.meaning


def test_a_run_that_has_learned_nothing_yet_is_not_judged():
    trained = stuck_run(sound_model(), loss=4.1, earlier=4.11)
    results = run_checks([CHECKS["unigram"], CHECKS["input-use"]], context(trained=trained))
    assert [result.verdict for result in results] == ["not applicable", "not applicable"]
