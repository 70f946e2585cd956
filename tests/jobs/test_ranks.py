"""Two processes on one CPU train as one does: figures, checkpoints, errors, ends."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_pairs import environments, run_pair, start_pair
from run_contents import assert_same_run, rows
from tiny_runs import PUZZLES

import mixlab
from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir
from mixlab.training import checkpoint as checkpoints

MANY_PARTS = [
    "train.micro_batch_size=1",
    "train.optimizer={kind: muon, ns_dtype: float32}",
    "train.ema={rate: 0.9}",
    "model.n_layers=2",
    "model.blocks.full.channel_mixer={kind: moe, n_experts: 4, n_active_experts: 2, d_expert: 8, "
    "scores: sigmoid, bias_update_rate: 0.01}",
    "model.blocks.linear={sequence_mixer: {kind: gated_deltanet, n_heads: 2, head_dim: 8}, "
    "channel_mixer: {kind: mlp, d_ff: 24}}",
    "model.pattern=[linear, full]",
    "checkpoint.keep_every=5",
    "sample.n=0",
]
"""Every kind of state that ranks share, without draws, of which each rank has its own."""
NOISE = ["model.dropout=0.1", "checkpoint.keep_every=5", "sample.n=0"]
OF_ONE_PASS = {"layers"}  # figures of the last forward pass, which two ranks have two of


@pytest.fixture(scope="module")
def one(fork_server, tiny_recipe, tmp_path_factory) -> Path:
    """What one process makes of it."""
    root = tmp_path_factory.mktemp("one")
    result = fork_server.run(["train", tiny_recipe, *MANY_PARTS, "--run-dir", "run"], cwd=root)
    assert result.code == 0, result.stderr
    return root / "run"


def pair(fork_server, argv, cwd, code=0):
    results = run_pair(fork_server, argv, cwd=cwd)
    assert [result.code for result in results] == [code, code], [r.stderr for r in results]
    said = [line for line in results[1].stderr.splitlines() if "profiler_" not in line]  # Kineto's
    assert not results[1].stdout and not said, "only the first rank speaks"
    return results[0]


def is_close(a, b) -> bool:
    """Equal but for the rounding of numbers, at any depth."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_close, a, b))
    return a == pytest.approx(b, rel=2e-4, abs=1e-7) if isinstance(b, float) else a == b


def assert_close_run(got: Path, expected: Path) -> None:
    """The same rows and weights but for the rounding of sums in another order."""
    for name in ("metrics.jsonl", "evals.jsonl"):
        mine, others = rows(got / name), rows(expected / name)
        assert len(mine) == len(others)
        for a, b in zip(mine, others, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - OF_ONE_PASS:
                assert is_close(a[key], b[key]), f"{name}: {key} at step {a['step']}"
    last = [checkpoints.newest_good(run / "checkpoints") for run in (got, expected)]
    mine, others = (checkpoints.load(path).tensors for path in last)
    for group in {"model", "optimizer", "ema"} & others.keys():
        assert mine[group].keys() == others[group].keys()
        for name, tensor in mine[group].items():
            assert tensor.shape == others[group][name].shape
            assert tensor.allclose(others[group][name], rtol=1e-3, atol=2e-5), f"{group}/{name}"


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_train_as_one_and_one_goes_on_for_two(
    one, parallel, fork_server, tiny_recipe, tmp_path
):
    """2 ranks, then 1 from step 5, then 2 from step 10: always the run of one process."""
    words = [*MANY_PARTS, f"train.parallel={parallel}", "--run-dir", "run"]
    told = pair(fork_server, ["train", tiny_recipe, *words], tmp_path)
    assert "Trained" in told.stdout
    run = tmp_path / "run"
    assert_close_run(run, one)
    saved = {path.name for path in (run / "checkpoints" / "step-000010").iterdir()}
    assert ("model.part2of2.safetensors" in saved) == (parallel == "fsdp")

    again = fork_server.run(["train", "--resume", run, "--at-step", "5"], cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert_close_run(run, one)
    other = ["train.parallel=ddp"] if parallel == "fsdp" else []  # how work is shared may change
    pair(fork_server, ["train", "--resume", run, "--at-step", "10", *other], tmp_path)
    assert_close_run(run, one)
    facts = [row["environment"] for row in rows(run / "sittings.jsonl")]
    assert [row["accelerator"]["n_ranks"] for row in facts] == [2, 1, 2]
    assert facts[0]["command"].startswith("torchrun --nproc-per-node 2 -m mixlab train")


@pytest.mark.slow
def test_as_many_ranks_go_on_bit_for_bit(fork_server, tiny_recipe, tmp_path):
    """Dropout included: every rank's generator is saved."""
    pair(fork_server, ["train", tiny_recipe, *NOISE, "--run-dir", "run"], tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    pair(fork_server, ["train", "--resume", "again", "--at-step", "5"], tmp_path)
    assert_same_run(tmp_path / "again", tmp_path / "run")


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_job(victim, fork_server, tiny_recipe, tmp_path):
    words = ["train.length=100000", "eval.every=100000", "--run-dir", "run"]
    ranks = start_pair(fork_server, ["train", tiny_recipe, *words], cwd=tmp_path)
    run = RunDir(tmp_path / "run")
    ranks[victim].send_when(signal.SIGKILL, lambda: checkpoints.steps(run.checkpoints_path) != [])
    start = time.monotonic()
    results = [rank.wait() for rank in ranks]
    # Nobody waits for the dead, which gloo itself would for 20 minutes.
    assert time.monotonic() - start < 30
    assert results[victim].code == -signal.SIGKILL
    other = results[1 - victim]
    assert other.code == 1
    assert f"mixlab: rank {victim} has ended unexpectedly" in other.stderr
    assert "--resume" in other.stderr and "Traceback" not in other.stderr
    assert checkpoints.newest_good(run.checkpoints_path) is not None
    with run.lock():  # free, so the run can go on
        pass


def test_a_stop_signal_to_any_rank_saves_and_ends_all(fork_server, tiny_recipe, tmp_path):
    words = ["train.length=100000", "eval.every=100000", "--run-dir", "run"]
    ranks = start_pair(fork_server, ["train", tiny_recipe, *words], cwd=tmp_path)
    run = RunDir(tmp_path / "run")
    ranks[1].send_when(signal.SIGTERM, lambda: len(rows(run.metrics_path)) > 3)
    results = [rank.wait() for rank in ranks]
    assert results[1].code == 128 + signal.SIGTERM
    assert results[0].code == 0 and "everything is saved" in results[0].stdout
    assert checkpoints.steps(run.checkpoints_path)[-1] == len(rows(run.metrics_path))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train.batch_size=3"], "train.batch_size = 3: expected a multiple of the 2 processes"),
        (["train.batch_size=12", "train.micro_batch_size=4"], "train.micro_batch_size = 4: "),
        (["--run-dir", "taken"], "run folder taken"),  # which only the first rank looks at
    ],
)
def test_errors_are_told_once(words, text, fork_server, tiny_recipe, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    result = pair(fork_server, ["train", tiny_recipe, *words], tmp_path, code=2)
    assert text in result.stderr and "Traceback" not in result.stderr


def test_other_commands_refuse_several_processes(one, fork_server, tmp_path):
    result = pair(fork_server, ["generate", one, "--prompt", "a"], tmp_path, code=2)
    assert "2 processes: expected one" in result.stderr


def test_python_code_is_no_place_for_ranks(tiny_recipe, monkeypatch):
    for name, value in environments()[1].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabError, match=r"2 processes: expected one for mixlab\.train"):
        mixlab.train(mixlab.recipe(tiny_recipe))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["extend", "sft", "bench"])
def test_other_commands_that_train(command, one, fork_server, tiny_recipe, tmp_path):
    lines = [json.dumps({"prompt": f"what is {i}", "completion": f"it is {i}"}) for i in range(60)]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    words = {
        "extend": ["extend", one, "--steps", "14"],
        "sft": ["sft", one, "examples.jsonl", "data.seq_len=48", "train.length=4",
                "train.batch_size=4", "train.micro_batch_size=1", "train.precision=fp32"],
        "bench": ["bench", tiny_recipe, "--updates", "3"],
    }[command]  # fmt: skip
    if command == "bench":
        assert "2, which share every update" in pair(fork_server, words, tmp_path).stdout
        return
    alone = fork_server.run([*words, "--run-dir", tmp_path / "alone"], cwd=tmp_path)
    assert alone.code == 0, alone.stderr
    pair(fork_server, [*words, "--run-dir", tmp_path / "both"], tmp_path)
    assert_close_run(tmp_path / "both", tmp_path / "alone")


@pytest.mark.slow
def test_puzzles_share_their_carry(fork_server, tmp_path):
    """A refiner's rows belong to ranks; its checkpoints have them all."""
    (tmp_path / "puzzles.yaml").write_text(PUZZLES)
    # Muon's bfloat16 makes steps of rounding.
    words = ["train", "puzzles.yaml", "train.optimizer={kind: adamw, lr: 0.001}"]
    words += ["checkpoint.keep_every=6", "--run-dir"]
    assert fork_server.run([*words, "alone"], cwd=tmp_path).code == 0
    pair(fork_server, [*words, "both"], tmp_path)
    assert_close_run(tmp_path / "both", tmp_path / "alone")
    again = fork_server.run(["train", "--resume", "both", "--at-step", "6"], cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert_close_run(tmp_path / "both", tmp_path / "alone")
    refused = pair(fork_server, [*words, "x", "train.parallel=fsdp"], tmp_path, code=2)
    assert "train.parallel = 'fsdp': expected ddp or auto" in refused.stderr


@pytest.mark.slow
def test_torchrun_itself(one, tiny_recipe, shared_cache, tmp_path):
    """The launcher's own environment, store and end."""
    import os

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    env = {**os.environ, "MIXLAB_CACHE": str(shared_cache), "OMP_NUM_THREADS": "1"}
    words = ["-m", "mixlab", "train", tiny_recipe]
    done = subprocess.run(
        [*torchrun, *words, *MANY_PARTS, "--run-dir", "run"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_close_run(tmp_path / "run", one)
    failed = subprocess.run(
        [*torchrun, *words, "train.batch_size=3"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert failed.returncode != 0
    assert failed.stderr.count("train.batch_size = 3: expected") == 1
