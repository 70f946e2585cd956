"""A run of a looped model: what it leaves behind, and that a break changes nothing."""

import pytest

from mixlab.core.errors import LabError
from mixlab.jobs.api import open_run
from mixlab.jobs.train import start_run

LOOPED = (
    "model.n_layers=3",
    "model.recursion={kind: looped, core_layers: 1, depth: {kind: poisson, mean: 2.0, "
    "halt_max_steps: 4}, bp_max_loops: 2, bp_min_loops: 1, bp_ramp_updates: 6, "
    "halting: {kind: gate}}",
)


def test_the_summary_and_the_report_show_every_depth(lab, tiny_recipe, quiet):
    result = start_run(
        str(tiny_recipe), LOOPED, run_dir=lab / "run", screen=quiet, command="test"
    )  # fmt: skip
    depth = result.summary["depth"]
    assert depth["trained_steps"] == 2 and depth["max_trained_steps"] == 4
    assert [row["steps"] for row in depth["by_depth"]] == [1, 2, 3, 4]
    final = result.summary["final"]
    assert depth["by_depth"][1]["loss_nats"] == pytest.approx(final["loss_nats"], abs=1e-4)
    assert all(1 <= row["mean_steps"] <= 2 for row in depth["with_exits"])
    report = (lab / "run" / "report.md").read_text()
    assert "## Depth" in report and "plots/depth.png" in report
    assert (lab / "run" / "plots" / "depth.png").stat().st_size > 1000
    rows = result.run.read_jsonl("metrics.jsonl")
    depths = {row["reasoning_steps"] for row in rows}
    assert depths <= {1, 2, 3, 4} and len(depths) > 1
    assert all(row["expected_steps"] >= 1 and row["act_penalty"] > 0 for row in rows)
    assert open_run(str(lab / "run")).generate("the ", max_new_tokens=3)


def test_a_broken_off_run_ends_like_one_that_was_not(train_tiny, resume, lab):
    whole = train_tiny(*LOOPED, name="whole")
    train_tiny(*LOOPED, "checkpoint.keep_every=5", name="parts")
    parts = resume(lab / "parts", at_step=5)
    for name in ("loss_nats", "reasoning_steps", "grad_norm", "expected_steps"):
        a = [row[name] for row in whole.run.read_jsonl("metrics.jsonl")]
        b = [row[name] for row in parts.run.read_jsonl("metrics.jsonl")]
        assert a == b, name


def test_layers_that_do_not_fit_are_refused(train_tiny):
    with pytest.raises(LabError, match=r"model\.recursion\.core_layers = 1: expected prelude"):
        train_tiny(*LOOPED, "model.n_layers=4")
