"""The whole job in this process: lengths, what is measured, what is written, what is said."""

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from run_contents import rows
from screens import Quiet

from mixlab.core.provenance import n_usable_cores
from mixlab.core.run_dir import RunDir
from mixlab.data.batch import Batch
from mixlab.evals.language_modelling import evaluate
from mixlab.jobs import kinds
from mixlab.jobs.config import load_config
from mixlab.jobs.process import command_age_s
from mixlab.jobs.session import prepare_data
from mixlab.jobs.train import start_run
from mixlab.jobs.trained import open_trained
from mixlab.nn.budget import model_budget
from mixlab.training import checkpoint as checkpoints


def test_learns_far_below_what_single_tokens_tell(lab, tiny_recipe, quiet, no_pictures):
    """Text in which every word decides the next: a model that reads the past knows it."""
    (lab / "abc.txt").write_text("")
    for i in range(40):
        text = " ".join("abcdefgh"[(i + j) % 8] * 3 for j in range(120))
        (lab / f"doc{i:02d}.txt").write_text(f"{i} {text}\n")
    overrides = [
        f"data.corpus.path={lab}/doc*.txt", "train.length=60", "train.optimizer.lr=0.03",
        "data.split={max_overlap: 1.0}", "model.blocks.full.channel_mixer.d_ff=64",
    ]  # fmt: skip
    result = start_run(str(tiny_recipe), overrides, run_dir=lab / "run", screen=quiet)
    final, context = result.summary["final"], result.summary["context"]
    assert final["loss_nats"] < 0.5 * context["unigram_entropy_nats"]
    assert result.summary["best"]["loss_nats"] <= final["loss_nats"]


@pytest.mark.parametrize(
    ("length", "steps"),
    [("3 steps", 3), ("200 tokens", 3), ("1 tokens", 1), ("64 tokens", 1), ("0.1k tokens", 1)],
)
def test_length_in_tokens(length, steps, train_tiny):
    """4 sequences of 16 tokens an update; rounded down, but never to nothing."""
    result = train_tiny(f"train.length={length}")
    assert result.summary["steps"] == steps and result.summary["tokens"] == 64 * steps
    assert load_config(str(result.run.config_path)).train.length.unit == "steps"


def test_length_in_flops(train_tiny, tiny_recipe):
    config = load_config(str(tiny_recipe))
    per_step = 64 * model_budget(config.model, 16).train_flops_per_token
    result = train_tiny(f"train.length={3.5 * per_step:.6e} flops")
    assert result.summary["steps"] == 3
    assert result.summary["flops"] == pytest.approx(3 * per_step)


def test_length_in_seconds_is_settled_once(train_tiny, monkeypatch):
    timed = kinds.KINDS["language_model"]._replace(seconds_per_step=lambda *args: 0.25)
    monkeypatch.setitem(kinds.KINDS, "language_model", timed)
    result = train_tiny("train.length=2 seconds")
    assert result.summary["steps"] == 8
    assert str(load_config(str(result.run.config_path)).train.length) == "8 steps"


def test_a_measured_step_takes_time_and_changes_nothing(train_tiny, lab):
    """Timing updates beforehand must not move the weights or the draws of the run itself."""
    train_tiny("train.length=0.001 seconds", "model.dropout=0.1", name="timed")
    train_tiny("train.length=1", "model.dropout=0.1", name="plain")
    assert rows(lab / "timed" / "metrics.jsonl")[0] == rows(lab / "plain" / "metrics.jsonl")[0]


def test_early_stopping(train_tiny):
    result = train_tiny("train.early_stopping={patience: 2, min_delta: 100}", "train.length=40")
    assert result.status == result.summary["status"] == "stopped early"
    assert result.summary["steps"] == 8 and result.signal is None


def test_one_step_and_a_warm_up_as_long_as_the_run(train_tiny):
    assert train_tiny("train.length=1", "train.schedule={kind: cosine}").summary["steps"] == 1
    schedule = "train.schedule={kind: wsd, warmup_steps: 4}"
    run = train_tiny("train.length=4", schedule, name="ramp").run
    assert [row["lr"] for row in rows(run.metrics_path)] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01]
    )


def test_micro_batches_do_not_change_the_run(train_tiny):
    losses = []
    for size in (1, 2, 4):
        run = train_tiny(f"train.micro_batch_size={size}", name=f"by-{size}").run
        losses.append([row["loss_nats"] for row in rows(run.metrics_path)])
    # The same float32 sums in another order, through twelve updates.
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_bf16_keeps_float32_weights_and_stays_near(train_tiny):
    exact = train_tiny().run
    half = train_tiny("train.precision=bf16", name="half").run
    saved = checkpoints.load(checkpoints.newest_good(half.checkpoints_path))
    assert {t.dtype for t in saved.tensors["model"].values()} == {torch.float32}
    got, want = (rows(run.evals_path)[-1]["loss_nats"] for run in (half, exact))
    assert got != want
    assert got == pytest.approx(want, abs=0.05)  # rounded products, averaged over the targets


# --- measuring ------------------------------------------------------------------------------------


def reference_evaluation(run, weights):
    """Validation loss of saved weights by PyTorch's own mean over the first windows."""
    config = load_config(str(run.config_path))
    data = prepare_data(config, Quiet())
    shards = data.split("validation")
    n_windows, t = 256 // 16, 16
    stream = np.array(shards.tokens[: n_windows * t + 1], dtype=np.int64)
    tokens = torch.tensor(stream[:-1]).view(n_windows, t)
    targets = torch.tensor(stream[1:]).view(n_windows, t)
    document = np.searchsorted(np.array(shards.starts), np.arange(n_windows * t), side="right")
    segments = torch.tensor(document.astype(np.int32)).view(n_windows, t)
    model = open_trained(run.path, "last").model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    batch = Batch(tokens, targets, segments)
    return evaluate(model.double(), [batch], shards.token_bytes), targets, data


def test_validation_is_a_fixed_set_and_the_average_is_what_is_measured(train_tiny):
    run = train_tiny("train.ema={rate: 0.9}").run
    saved = checkpoints.load(checkpoints.newest_good(run.checkpoints_path)).tensors
    row = rows(run.evals_path)[-1]
    averaged, targets, _ = reference_evaluation(run, saved["ema"])
    raw, _, _ = reference_evaluation(run, saved["model"])
    assert row["weights"] == "ema" and row["n_tokens"] == targets.numel() == 256
    # float32 against float64.
    assert row["loss_nats"] == pytest.approx(averaged.loss_nats, rel=1e-5)
    assert abs(raw.loss_nats - averaged.loss_nats) > 1e-3
    assert row["bits_per_byte"] == pytest.approx(averaged.bits_per_byte, rel=1e-5)


def test_context_lines_by_hand(train_tiny):
    """The unigram entropy is that of exactly the targets that are measured."""
    result = train_tiny()
    saved = checkpoints.load(checkpoints.newest_good(result.run.checkpoints_path)).tensors
    _, targets, data = reference_evaluation(result.run, saved["model"])
    counts = Counter(targets.flatten().tolist())
    n = sum(counts.values())
    entropy = -sum(c / n * math.log(c / n) for c in counts.values())
    context = result.summary["context"]
    assert context["unigram_entropy_nats"] == pytest.approx(entropy, rel=1e-12)
    assert context["ln_vocab_nats"] == pytest.approx(math.log(data.tokenizer.vocab_size))
    n_bytes = sum(data.split("validation").token_bytes[t] * c for t, c in counts.items())
    assert context["bytes_per_target"] == pytest.approx(n_bytes / n)
    loss = result.summary["final"]["loss_nats"]
    want = loss * n / math.log(2) / n_bytes
    assert result.summary["final"]["bits_per_byte"] == pytest.approx(want, rel=1e-6)


def test_evaluating_more_often_changes_no_update(train_tiny, lab):
    train_tiny("model.dropout=0.1", "eval.every=1", "checkpoint.every=1", name="often")
    train_tiny("model.dropout=0.1", "eval.every=100", "checkpoint.every=100", name="seldom")
    assert rows(lab / "often" / "metrics.jsonl") == rows(lab / "seldom" / "metrics.jsonl")


def test_a_validation_set_that_is_too_small_is_said(train_tiny, quiet):
    result = train_tiny("eval.n_tokens=100000")
    assert any("Validation has only" in note for note in quiet.notes)
    assert any("Validation has only" in note for note in result.summary["notes"])
    data_tokens = RunDir.open(result.run.path).read_json("data.json")["splits"]["validation"]
    assert 0 < data_tokens["tokens"] - result.summary["final"]["n_tokens"] <= 16


def test_a_small_rate_of_averaging_is_warned_about(train_tiny, quiet):
    train_tiny("train.ema={rate: 0.999}")
    assert any("lags behind" in note for note in quiet.notes)


# --- what is left behind --------------------------------------------------------------------------


def test_kept_checkpoints_are_best_last_and_every_so_many(train_tiny):
    run = train_tiny("checkpoint={every: 2, keep_every: 4}", "eval.every=3").run
    best = checkpoints.read_best(run.checkpoints_path)
    evals = {row["step"]: row["loss_nats"] for row in rows(run.evals_path)}
    assert best.loss_nats == min(evals.values()) == evals[best.step]
    kept = checkpoints.steps(run.checkpoints_path)
    assert set(kept) == {4, 8, 12, best.step}


def test_a_trained_model_is_opened_with_the_weights_that_were_measured(train_tiny):
    run = train_tiny("train.ema={rate: 0.9}", "checkpoint.keep_every=5").run
    saved = checkpoints.load(checkpoints.step_path(run.checkpoints_path, 5))
    model = open_trained(run.path, "5")
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter.cpu(), saved.tensors["ema"][name])
    assert model.step == 5
    assert model.generate("abc", max_new_tokens=4) == model.generate("abc", max_new_tokens=4)


def test_pieces_of_a_stream_add_up_to_the_text(train_tiny):
    from mixlab.infer.sampler import SamplingConfig

    model = open_trained(train_tiny("train.length=1").run.path)
    settings = {"max_new_tokens": 40, "sampling": SamplingConfig(temperature=3.0), "seed": 5}
    pieces = list(model.stream("a\u00e9\u4e2d", **settings))
    assert "".join(pieces) == model.generate("a\u00e9\u4e2d", **settings)
    assert model.stream and len(pieces) > 1


def test_other_parts_of_the_process_keep_their_random_numbers(train_tiny):
    torch.manual_seed(11)
    want = torch.rand(2)
    torch.manual_seed(11)
    train_tiny("train.length=1")
    assert torch.equal(torch.rand(2), want)


def test_a_prompt_longer_than_the_model_can_hold_is_cut_from_samples(train_tiny):
    """Prompts are taken from validation text; short models get short ones."""
    run = train_tiny("model.max_seq_len=16", "sample.n=2", "train.length=1").run
    samples = run.read_jsonl("samples.jsonl")
    assert len(samples) == 2 and all(row["text"] for row in samples)


def test_a_model_of_one_token_is_trained_without_samples(train_tiny):
    run = train_tiny("model.max_seq_len=1", "data.seq_len=1", "train.length=1").run
    assert run.read_json("summary.json")["status"] == "finished"
    assert run.read_jsonl("samples.jsonl") == []


def test_more_threads_than_cores_are_told(train_tiny, quiet):
    n_threads, n_asked = torch.get_num_threads(), (n_usable_cores() or 1) + 1
    try:
        train_tiny(f"train.threads={n_asked}", "train.length=1")
    finally:
        torch.set_num_threads(n_threads)
    assert any(f"train.threads = {n_asked}: only" in note for note in quiet.notes)


def test_the_age_of_a_command_is_not_that_of_a_run_in_a_study(monkeypatch):
    monkeypatch.setitem(sys.modules, "mixlab.cli.main", object())
    monkeypatch.setattr(sys, "argv", ["mixlab", "train", "quickstart"])
    assert command_age_s() > 0
    monkeypatch.setattr(sys, "argv", ["mixlab", "study", "worker", "studies/x"])
    assert command_age_s() is None


def test_the_summary_tells_where_the_time_went(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert 0 < summary["eval_s"] + summary["save_s"] < summary["train_s"]
    assert 0 < summary["first_step_s"] < 600
    assert summary["peak_memory_bytes"] is None  # on a CPU
    report = (uninterrupted / "report.md").read_text()
    assert "% for evaluations" in report and "until the first step" in report
