"""A refine run that is killed goes on bit for bit: the carry is part of what is saved."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from run_contents import assert_same_run
from tiny_runs import PUZZLES

from mixlab.core.run_dir import is_run

N_KILLS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("refine") / "tiny-refine.yaml"
    path.write_text(PUZZLES)
    return path


@pytest.fixture(scope="module")
def whole(fork_server, recipe, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    result = fork_server.run(["train", recipe, "--run-dir", "run"], cwd=root, whole=True)
    assert result.code == 0, result.stderr
    return root / "run"


def test_kills_change_no_bit(whole, fork_server, recipe, tmp_path):
    g, kills = random.Random(5), 0
    run = tmp_path / "run"
    while True:
        words = ["--resume", run] if is_run(run) else [recipe, "--run-dir", run]
        if not is_run(run):
            shutil.rmtree(run, ignore_errors=True)
        die_at = g.randint(10, 60) if kills < N_KILLS else None
        command = fork_server.start(["train", *words], cwd=tmp_path, die_at=die_at, whole=True)
        result = command.wait()
        if result.code == -signal.SIGKILL:
            kills += 1
            continue
        assert result.code == 0, result.stderr
        break
    assert kills > 0
    assert_same_run(run, whole)


def test_a_run_tells_what_it_found(whole):
    summary = json.loads((whole / "summary.json").read_text())
    test = summary["test"]
    names = ("exact_accuracy", "blank_accuracy", "valid_accuracy", "loss_nats", "halt_ece",
             "eval/reasoning_steps", "regress_rate", "flops_per_example")  # fmt: skip
    assert set(names) <= set(test)
    assert len(test["accuracy_by_step"]) == 2 * 4, "to twice the trained depth"
    assert {path.name for path in (whole / "plots").iterdir()} == {
        "film.png", "refinement.png", "training_curves.png",
    }  # fmt: skip
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 18
    assert {"halt_rate", "train/reasoning_steps", "q_halt_mean", "count"} <= set(rows[-1])


def test_a_run_can_be_extended(whole, fork_server, tmp_path):
    result = fork_server.run(
        ["extend", whole, "--steps", "20", "--run-dir", "longer"], cwd=tmp_path
    )
    assert result.code == 0, result.stderr
    assert json.loads((tmp_path / "longer" / "summary.json").read_text())["steps"] == 20


@pytest.mark.parametrize(
    "change, message",
    [
        ("model.grid=[6, 6]", "model.grid"),
        ("model.vocab_size=7", "model.vocab_size"),
        ("kind=refined", "kind = 'refined'"),
        ("train.micro_batch_size=2", "train.micro_batch_size"),
        ("model.halting.halt_min_steps=9", "halt_min_steps"),
        ("data.task.blanks=[15, 16]", "blanks"),
    ],
)
def test_bad_input_is_named(change, message, fork_server, recipe, tmp_path):
    result = fork_server.run(["train", recipe, change, "--run-dir", "bad"], cwd=tmp_path)
    assert result.code != 0 and message in result.stderr and "Traceback" not in result.stderr
    assert not is_run(tmp_path / "bad")


def test_generate_says_that_a_refiner_writes_no_text(whole, fork_server, tmp_path):
    result = fork_server.run(["generate", whole, "--prompt", "x"], cwd=tmp_path)
    assert result.code != 0 and "solves puzzles" in result.stderr
