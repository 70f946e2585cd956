"""`mixlab check` and `--smoke` as commands: what is printed, and how they end."""

import json


def rows_of(text):
    return {line.split("\t")[0]: line.split("\t")[1:] for line in text.splitlines()}


def test_a_sound_recipe_ends_with_0(fork_server, tiny_recipe, tmp_path):
    result = fork_server.run(["check", tiny_recipe], cwd=tmp_path)
    assert result.code == 0, result.stdout + result.stderr
    rows = rows_of(result.stdout)
    assert rows["causality"][0] == "pass" and rows["split"][0] == "not applicable"
    assert all(len(row) == 3 and all(row) for row in rows.values())
    assert "parameters" in result.stderr


def test_a_failed_check_ends_with_1(fork_server, tiny_recipe, tmp_path):
    """A float32 weight near 1 cannot take steps of a billionth."""
    words = ["check", tiny_recipe, "train.optimizer.lr=1e-9"]
    result = fork_server.run(words, cwd=tmp_path)
    assert result.code == 1, result.stdout + result.stderr
    failed = [name for name, row in rows_of(result.stdout).items() if row[0] == "fail"]
    assert failed == ["master-weights"]


def test_a_failed_check_before_training_is_an_error_of_the_user(fork_server, tiny_recipe, tmp_path):
    words = ["train", tiny_recipe, "train.optimizer.lr=1e-9", "checks=quick", "--run-dir", "run"]
    result = fork_server.run(words, cwd=tmp_path)
    assert result.code == 2
    assert result.stderr.splitlines()[-1].startswith("mixlab train: check master-weights failed")
    assert not json.loads((tmp_path / "run" / "checks.json").read_text())["passed"]


def test_what_does_not_exist_ends_with_2(fork_server, tmp_path):
    result = fork_server.run(["check", "quickstrat"], cwd=tmp_path)
    assert result.code == 2 and "quickstart" in result.stderr


def test_smoke_shows_and_trains_the_reduced_recipe(fork_server, tiny_corpus, tmp_path):
    shown = fork_server.run(["show", "hybrid-sparse-17", "--smoke"], cwd=tmp_path)
    assert shown.code == 0, shown.stderr
    assert "hybrid-sparse-17-smoke" in shown.stdout and "20 steps" in shown.stdout
    corpus = f"data.corpus={{kind: text, path: '{tiny_corpus}', document: file}}"
    words = ["train", "quickstart", corpus, "--smoke", "train.device=cpu", "--run-dir", "run"]
    trained = fork_server.run(words, cwd=tmp_path)
    assert trained.code == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 20


def test_smoke_and_resume_exclude_each_other(fork_server, tmp_path):
    result = fork_server.run(["train", "--resume", "run", "--smoke"], cwd=tmp_path)
    assert result.code == 2 and "--smoke" in result.stderr
