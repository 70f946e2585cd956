"""The command line as a newcomer meets it: help, listings, a run from start to sample."""

import subprocess
import sys

import pytest

COMMANDS = ("train", "extend", "show", "list", "generate", "chat", "doctor")
LIGHT = """
import sys
from mixlab.cli.main import app
for words in (["--help"], *([name, "--help"] for name in sys.argv[1:]), ["list", "recipes"]):
    try:
        app(words, standalone_mode=True)
    except SystemExit as end:
        assert not end.code, words
heavy = {"torch", "numpy", "matplotlib", "pydantic", "tokenizers"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""


def test_help_loads_nothing_heavy():
    """`mixlab --help` must answer at once; what takes seconds is loaded when it is needed."""
    words = [sys.executable, "-c", LIGHT, *COMMANDS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout.splitlines()[-1]
    assert "matplotlib" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples(command, fork_server, tmp_path):
    result = fork_server.run([command, "--help"], cwd=tmp_path)
    assert result.code == 0 and "Example" in result.stdout
    assert f"mixlab {command}" in result.stdout.split("Example", 1)[1]


def test_the_first_page(fork_server, tmp_path):
    result = fork_server.run(["--help"], cwd=tmp_path)
    assert all(command in result.stdout for command in COMMANDS)
    assert "mixlab train quickstart" in result.stdout
    assert fork_server.run(["--version"], cwd=tmp_path).stdout.startswith("mixlab ")


@pytest.mark.parametrize(
    ("what", "name"),
    [("recipes", "quickstart"), ("corpora", "python-stdlib"), ("mixers", "attention"),
     ("mixers", "moe"), ("optimizers", "muon"), ("schedules", "wsd"), ("tokenizers", "bpe"),
     ("mirrors", "tensorboard")],
)  # fmt: skip
def test_lists(what, name, fork_server, tmp_path):
    result = fork_server.run(["list", what], cwd=tmp_path)
    assert result.code == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert any(name in row for row in rows)
    assert all(row[-1] for row in rows), "every entry says what it is"


def test_show_prints_costs_and_a_config_that_trains(fork_server, tiny_recipe, tmp_path):
    shown = fork_server.run(["show", tiny_recipe, "model.n_layers=3"], cwd=tmp_path)
    assert shown.code == 0 and "attention" in shown.stdout and "FLOPs" in shown.stdout
    printed = fork_server.run(["show", tiny_recipe, "--config", "seed=9"], cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text(printed.stdout)
    again = fork_server.run(["show", "mine.yaml", "--config"], cwd=tmp_path)
    assert again.stdout == printed.stdout and "seed: 9" in printed.stdout


def test_from_text_to_a_sample(fork_server, tiny_recipe, tmp_path):
    words = ["train", tiny_recipe, "train.length=3", "checks=quick"]
    trained = fork_server.run(words, cwd=tmp_path, whole=True)
    assert trained.code == 0, trained.stderr
    for words in ("Curves: runs/tiny/plots/training_curves.png", "A sample", "unigram entropy",
                  "mixlab generate runs/tiny", "mixlab extend runs/tiny --steps 6"):  # fmt: skip
        assert words in trained.stdout
    assert "loss" in trained.stderr and "ETA" in trained.stderr
    run = tmp_path / "runs" / "tiny"
    for name in ("config.yaml", "environment.json", "data.json", "metrics.jsonl", "evals.jsonl",
                 "summary.json", "report.md", "plots/training_curves.png"):  # fmt: skip
        assert (run / name).stat().st_size > 0
    words = ["generate", "runs/tiny", "--prompt", "abc ", "--max-new-tokens", "5", "--seed", "4"]
    first, second = (fork_server.run(words, cwd=tmp_path) for _ in range(2))
    assert first.code == 0 and first.stdout.startswith("abc ") and first.stdout.endswith("\n")
    assert first.stdout == second.stdout
    longer = fork_server.run(["extend", "runs/tiny", "--steps", "6"], cwd=tmp_path)
    assert longer.code == 0 and "Going on from step 3" in longer.stderr
    assert (tmp_path / "runs" / "tiny-to-6" / "report.md").exists()


def test_doctor_answers(fork_server, tmp_path):
    result = fork_server.run(["doctor"], cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "PyTorch" in result.stdout and "data cache" in result.stdout


def test_a_second_run_gets_its_own_folder(fork_server, tiny_recipe, tmp_path):
    for _ in range(2):
        words = ["train", tiny_recipe, "train.length=1", "sample.n=0"]
        assert fork_server.run(words, cwd=tmp_path).code == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]
