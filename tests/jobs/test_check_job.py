"""Checks of recipes and runs, and the quick ones before training."""

import json
import signal

import pytest
import torch
from tiny_runs import Signalling

from mixlab.checks import CHECKS
from mixlab.core.errors import LabError
from mixlab.jobs import check as job
from mixlab.jobs.check import CheckFailedError, check
from mixlab.nn.language_model import build_model


@pytest.fixture
def broken(monkeypatch):
    """Every model that is checked has a projection that is never called."""

    def build(config, seed):
        model = build_model(config, seed)
        model.forgotten = torch.nn.Linear(2, 2)
        return model

    monkeypatch.setattr(job, "build_model", build)


def test_a_recipe(lab, tiny_recipe, quiet):
    report = check(str(tiny_recipe), screen=quiet)
    assert [result.name for result in report.results] == list(CHECKS)
    verdicts = {result.name: result.verdict for result in report.results}
    assert verdicts.pop("split") == "not applicable"
    assert set(verdicts.values()) == {"pass"} and not report.failed


def test_a_recipe_with_its_text(lab, tiny_recipe, quiet):
    report = check(str(tiny_recipe), with_data=True, screen=quiet)
    assert {result.verdict for result in report.results} == {"pass"}


def test_a_large_recipe_is_checked_as_a_small_copy_of_the_same_kinds(lab, quiet, monkeypatch):
    built = []

    def build(config, seed):
        built.append(config)
        return build_model(config, seed)

    monkeypatch.setattr(job, "build_model", build)
    monkeypatch.setattr(job, "CHECKS", {"packing": CHECKS["packing"]})
    report = check("hybrid-sparse", screen=quiet)
    assert "8 layers" in report.size and "same kinds in the same order" in report.size
    kinds = [built[0].blocks[name].sequence_mixer.kind for name in built[0].layers()]
    assert kinds == (["gated_deltanet"] * 2 + ["attention"]) * 2


def test_a_run_is_checked_with_its_weights_and_its_text(lab, train_tiny, quiet):
    run = train_tiny("train.length=40 steps").run
    report = check(str(run.path), screen=quiet)
    assert not report.failed
    findings = {result.name: result.finding for result in report.results}
    assert "a training batch" in findings["labels"].measured
    assert findings["split"].verdict == "pass"
    final = run.read_json("summary.json")["final"]["loss_nats"]
    assert findings["unigram"].figures["loss_nats"] == final
    with pytest.raises(LabError, match="expected no changes for the run"):
        check(str(run.path), ["train.batch_size=2"], screen=quiet)


def test_a_run_that_was_not_evaluated_yet_is_judged_by_a_loss_of_its_weights(train_tiny, quiet):
    """Its weights are no first weights, whose loss would have to be that of guessing."""
    run = train_tiny("train.length=40 steps").run
    rows = run.read_jsonl("evals.jsonl")
    run.evals_path.write_text(json.dumps(rows[0]) + "\n")
    assert rows[0]["step"] == 0
    report = check(str(run.path), screen=quiet)
    assert not report.failed
    figures = {result.name: result.finding.figures for result in report.results}
    last = [row for row in rows if row["split"] == "validation"][-1]
    assert figures["unigram"]["loss_nats"] == pytest.approx(last["loss_nats"], rel=0.05)


def test_a_run_that_has_not_begun_can_be_checked(lab, train_tiny, quiet, broken):
    with pytest.raises(CheckFailedError):
        train_tiny("checks=quick")
    report = check(str(lab / "run"), screen=quiet)
    assert [result.name for result in report.failed] == ["gradients"]
    assert any("no checkpoint" in note for note in report.notes)


def test_every_run_records_its_checks(train_tiny):
    record = train_tiny("checks=quick").run.read_json("checks.json")
    assert record["passed"] and record["seconds"] > 0 and record["size"]
    assert [row["check"] for row in record["results"]] == [
        name for name, entry in CHECKS.items() if entry.is_quick
    ]
    assert all(row["measured"] and row["meaning"] for row in record["results"])


def test_a_failed_check_stops_the_run_before_it_begins(lab, train_tiny, broken):
    with pytest.raises(CheckFailedError) as caught:
        train_tiny("checks=quick")
    text = str(caught.value)
    assert text.startswith("check gradients failed, so nothing was trained:")
    assert "forgotten.weight" in text and "forgotten.bias" in text
    assert f"mixlab check {lab / 'run'}" in text and "checks=off" in text
    assert not (lab / "run" / "metrics.jsonl").exists()
    assert not json.loads((lab / "run" / "checks.json").read_text())["passed"]


def test_checks_can_be_left_out(lab, train_tiny, broken):
    train_tiny("checks=off")
    assert not (lab / "run" / "checks.json").exists()


def test_checks_change_nothing_of_the_run(train_tiny):
    """Dropout draws from the global state, so a single draw by a check would show."""
    losses = [
        train_tiny("model.dropout=0.2", f"checks={checks}", name=checks).run.metrics()["loss_nats"]
        for checks in ("quick", "off")
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_is_not_checked_again(lab, train_tiny, resume, monkeypatch):
    train_tiny("checks=quick", screen=Signalling(3, signal.SIGINT))
    assert (lab / "run" / "checks.json").exists()
    monkeypatch.setattr(job, "run_checks", lambda *args: pytest.fail("checked again"))
    assert resume(lab / "run").status == "finished"
