"""What the GPU benchmarks do without a GPU: refuse in a paragraph, know the shapes, make tables."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixlab.jobs.config import load_config
from mixlab.nn.budget import model_budget

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks, as a script there would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


# Counted on the peers' own models, built by FLA 0.6.0 and transformers 5.17.
PEERS_PARAMETERS = {
    "published": 255_378_928,
    "hybrid": 166_535_288,
    "attention": 160_451_328,
    "moe": 159_409_664,
    "latent": 19_386_560,
}


def test_both_sides_have_the_same_shape(benchmark):
    for workload in benchmark("training_workloads").WORKLOADS:
        config = load_config(
            workload.recipe, [*workload.ours(workload.shape), *workload.peer_overrides]
        )
        n_params = model_budget(config.model, config.data.seq_len).n_params
        assert n_params == PEERS_PARAMETERS[workload.key], workload.key
        assert config.tokens_per_step == workload.shape.tokens
        assert config.model.dropout == 0


def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    script = benchmark("gpu_training")
    monkeypatch.setattr(script, "_has_gpu", lambda: False)
    assert script.main([]) == 2
    said = capsys.readouterr().err.strip()
    assert "needs an NVIDIA GPU" in said and "\n" not in said


def test_an_unknown_name_is_refused(benchmark, capsys):
    assert benchmark("gpu_training").main(["--only", "hybrids"]) == 2
    assert "--only hybrids: expected one of attention," in capsys.readouterr().err


def test_what_is_chosen(benchmark):
    script = benchmark("gpu_training")

    def names(*only, **kwargs):
        settings = {"peers": True, "extras": False, **kwargs}
        return [f"{w.key}/{c.key}" for w, c in script.chosen(only, **settings)]

    assert names("moe") == ["moe/mixlab", "moe/qwen3-moe-bf16"]
    assert names("moe", peers=False) == ["moe/mixlab"]
    assert names("moe/mixlab-eager", "latent/mixlab") == ["moe/mixlab-eager", "latent/mixlab"]
    assert len({name.split("/")[0] for name in names()}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("script", ["length.py", "curves.py"])
def test_every_script_that_needs_a_gpu_says_so(script):
    arguments = ["train", "ours"] if script == "curves.py" else []
    ended = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )  # fmt: skip
    assert ended.returncode == 2
    assert "needs an NVIDIA GPU" in ended.stderr and "Traceback" not in ended.stderr


def process(benchmark, monkeypatch, tmp_path, source):
    module, workloads = benchmark("training_processes"), benchmark("training_workloads")
    worker = tmp_path / "worker.py"
    worker.write_text(source)
    monkeypatch.setattr(module, "WORKER", worker)
    workload = workloads.WORKLOADS[0]
    return module.Process(workload, workload.contenders[0]), module.ContenderError


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no kernel')", "ended with status 1: RuntimeError: no kernel"),
        ("print('{\"error\": \"OutOfMemoryError: 3 GiB\"}')", "OutOfMemoryError: 3 GiB"),
        ("import time; time.sleep(60)", "no answer to 'start' within 1 s"),
    ],
)  # fmt: skip
def test_a_contender_that_fails_is_told_with_its_reason(
    benchmark, monkeypatch, tmp_path, source, reason
):
    contender, error = process(benchmark, monkeypatch, tmp_path, source)
    try:
        limit_s = 1 if "sleep" in source else 30
        with pytest.raises(error, match=reason):
            contender.ask("start", limit_s)
    finally:
        contender.end()


def found():
    common = {"workload": "hybrid", "tokens": 50_000}
    ours = {
        **common, "contender": "mixlab", "label": "mixlab, as it comes", "is_ours": True,
        "rounds_ms": [[100, 101, 99], [90, 110, 125]], "n_params": 167_700_000,
        "flops_per_token": 0.8e9, "peak_bytes": 2**31, "first_update_s": 12.3,
        "kernels": [{"kind": "matrix products", "ms": 90.0}, {"kind": "norm", "ms": 1.5}],
    }  # fmt: skip
    peer = {
        **common, "contender": "fla", "label": "FLA", "is_ours": False,
        "rounds_ms": [[200] * 3] * 2, "n_params": 166_500_000, "flops_per_token": 0.8e9,
        "peak_bytes": 2**30, "first_update_s": 1,
    }  # fmt: skip
    broken = {
        **common, "contender": "x", "label": "broken", "is_ours": False, "rounds_ms": [],
        "error": "ImportError: no package | at all",
    }  # fmt: skip
    return {
        "kind": "gpu_training", "made": "2026-01-01", "command": "python it", "rows": [ours, peer,
        broken], "matmul_flops": 800e12, "device": {"device": "cuda", "device_name": "H200"},
        "versions": {"torch": "2.11", "triton": None},
    }  # fmt: skip


def test_the_tables(benchmark):
    text = benchmark("training_tables").speed_tables(found())
    # Medians of the rounds are 100 and 110, their median 105: 50,000 tokens in 105 ms.
    assert "| 167.7 | 105.0 (100.0 to 110.0) | 476,190 | 0.476 | 2.0 | 12 |" in text
    assert "| 250k (FLA) | **476k** | 1.90 x | 420k / 500k | reached |" in text
    assert "| hybrid | mixlab, as it comes | 91.5 | 90.0 | 1.5 |" in text
    assert "ImportError: no package \\| at all" in text
    assert "torch 2.11. `python it`" in text


def test_runs_of_several_workloads_make_one_table(benchmark):
    tables = benchmark("training_tables")
    other = found() | {"command": "python that", "matmul_flops": 600e12}
    other["rows"] = [row | {"workload": "published"} for row in other["rows"]]
    both = tables.joined([found(), other])
    assert [row["workload"] for row in both["rows"]] == ["published"] * 3 + ["hybrid"] * 3
    assert both["matmul_flops"] == 700e12 and both["command"] == "python it`, `python that"
    with pytest.raises(ValueError, match="measured twice"):
        tables.joined([found(), found()])


def test_a_table_replaces_the_one_before_it(benchmark):
    tables = benchmark("training_tables")
    page = "# Title\n<!-- a -->\nold\n<!-- end of a -->\nrest\n"
    once = tables.between_marks(page, "a", "new")
    assert once == "# Title\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nrest\n"
    assert tables.between_marks(once, "a", "new") == once
    with pytest.raises(ValueError, match="expected one <!-- b -->"):
        tables.between_marks(page, "b", "new")


def test_the_readme_has_a_place_for_every_table(benchmark):
    tables = benchmark("training_tables")
    page = (FOLDER / "README.md").read_text()
    for kind in (tables.SPEEDS, tables.FIRST_STEPS):
        tables.between_marks(page, kind, "")


def test_the_readme_shows_the_kept_results(benchmark):
    tables = benchmark("training_tables")
    page = (FOLDER / "README.md").read_text()
    for kind, table in (
        (tables.SPEEDS, tables.speed_tables),
        (tables.FIRST_STEPS, tables.first_step_table),
    ):
        kept = sorted((FOLDER / "results").glob(f"{kind}*.json"))
        found = tables.joined([json.loads(path.read_text()) for path in kept])
        assert tables.between_marks(page, kind, table(found)) == page


def test_the_readme_names_every_benchmark():
    page = (FOLDER / "README.md").read_text()
    scripts = [p.name for p in FOLDER.glob("*.py") if "def main(" in p.read_text()]
    assert [name for name in scripts if name not in page] == []
