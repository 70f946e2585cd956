"""What a run with experts leaves behind about them."""

from collections.abc import Callable

import numpy as np
import pytest

from mixlab.core.run_dir import RunDir
from mixlab.evals.token_classes import CLASSES
from mixlab.jobs.train import start_run

MOE = (
    "model.n_layers=3",
    "model.blocks.moe={sequence_mixer: {kind: attention, n_heads: 2, head_dim: 8},"
    " channel_mixer: {kind: moe, n_experts: 4, n_active_experts: 2, d_expert: 8}}",
    "model.pattern=[full, moe, moe]",
)


@pytest.fixture
def train_with_report(lab, tiny_recipe, quiet) -> Callable[..., RunDir]:
    def run(*overrides: str) -> RunDir:
        start_run(str(tiny_recipe), overrides, run_dir=lab / "run", screen=quiet, command="test")
        return RunDir.open(lab / "run")

    return run


def test_a_run_with_experts_reports_them(train_with_report):
    run = train_with_report(*MOE, "train.ema={rate: 0.3}")
    facts = run.read_json("experts.json")
    assert facts["step"] == 12 and facts["weights"] == "ema"
    assert facts["n_tokens"] == 256 and facts["classes"] == list(CLASSES)  # eval.n_tokens
    assert list(facts["layers"]) == ["layer_01", "layer_02"]
    for layer in facts["layers"].values():
        counts = np.array(layer["counts"])
        np.testing.assert_array_equal(counts.sum(axis=1), 2 * np.array(facts["class_tokens"]))
        assert 0 <= layer["bits"] <= layer["most_bits"]
    picture = run.plots_path / "experts.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = run.report_path.read_text()
    section = text.partition("## Experts")[2].partition("\n## ")[0]
    for wanted in ("plots/experts.png", "over the last 12 steps", "| layer 02 |", "word start"):
        assert wanted in section


def test_a_run_without_experts_says_nothing_of_them(train_with_report):
    run = train_with_report()
    assert run.read_json("experts.json") is None
    assert not (run.plots_path / "experts.png").exists()
    assert "## Experts" not in run.report_path.read_text()
