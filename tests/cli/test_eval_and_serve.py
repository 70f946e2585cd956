"""`mixlab eval` and `mixlab serve` as commands."""

import re
import signal
import time

import httpx
import openai
import pytest


@pytest.fixture(scope="module")
def folder(fork_server, tiny_recipe, tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    result = fork_server.run(["train", tiny_recipe, "--run-dir", "run"], cwd=root)
    assert result.code == 0, result.stderr
    return root


def test_a_table_with_everything_to_judge_a_score_by(fork_server, folder):
    command = ["eval", "run", "--recall", "--pairs", "4", "--n", "3", "--n-tokens", "64"]
    result = fork_server.run(command, cwd=folder)
    assert result.code == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows[:3]] == [
        ["validation", "loss nats"], ["validation", "bits per byte"], ["validation", "accuracy"],
    ]  # fmt: skip
    assert all(len(row) == 6 for row in rows)
    assert rows[6][:2] == ["recall, 4 pairs", "recall"] and rows[6][4:] == ["12 queries", "10.0 %"]
    assert "Wrote run/evals/step-000012/loss.json" in result.stderr
    again = fork_server.run(command, cwd=folder)
    assert again.stdout == result.stdout
    assert "holds this already; --again measures it anew" in again.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["eval", "run", "--no-loss"], "leaves nothing to measure"),
        (["eval", "run", "--recall", "--pairs", "4,x"], "--pairs = '4,x': expected whole numbers"),
        (["eval", "run", "--needle", "--lengths", ","], "--lengths = ',': expected whole numbers"),
        (["eval", "run", "--n-tokens", "-5"], "n_tokens = -5: expected"),
        (["eval", "nothing"], "there is no run folder nothing"),
        (["serve", "nothing"], "there is no run folder nothing"),
        (["serve", "run", "--host", "0.0.0.0"], "expected a loopback address"),
        (["serve", "run", "--max-rows", "0"], "max_rows = 0: expected"),
        (["serve", "run", "--port", "-1"], "--port = -1: expected 0 to 65535"),
        (["serve", "run", "--token", "abc"], "--token of 3 characters: expected at least 8"),
    ],
)
def test_mistakes_are_one_paragraph(fork_server, folder, command, words):
    result = fork_server.run(command, cwd=folder)
    assert result.code == 2 and words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def test_a_run_that_is_still_training_is_served_and_said_to_be(folder, monkeypatch):
    from mixlab.core.run_dir import RunDir
    from mixlab.serve.server import open_service
    from mixlab.serve.settings import ServeSettings

    monkeypatch.chdir(folder)
    with RunDir.open("run").lock():
        service, notes = open_service("run", ServeSettings())
    assert service.card.facts["is_training"]
    assert any("step 12" in note and "training" in note for note in notes), notes
    assert service.card.facts["notes"] == notes[:-1]  # the last one is about base models


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_run_is_served_until_ctrl_c(fork_server, folder, number):
    command = fork_server.start(
        ["serve", "run", "--port", "0"], cwd=folder, MIXLAB_TOKEN="correct horse"
    )
    found: list[str] = []

    def listening():
        said = command._stderr.read_text() if command._stderr.exists() else ""
        found[:] = re.findall(r"at (http://127\.0\.0\.1:\d+)/v1", said)
        return bool(found)

    deadline = time.monotonic() + 60
    while not listening():
        assert time.monotonic() < deadline, command._stderr.read_text()
        time.sleep(0.02)
    client = openai.OpenAI(base_url=f"{found[0]}/v1", api_key="correct horse", max_retries=0)
    (model,) = client.models.list().data
    assert model.id == "run" and model.model_extra["mixlab"]["step"] == 12
    settings = {"model": "run", "prompt": "abc", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**settings)
    pieces = client.completions.create(**settings, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    direct = fork_server.run(
        ["generate", "run", "--prompt", "abc", "--temperature", "0", "--max-new-tokens", "8"],
        cwd=folder,
    )
    assert direct.stdout == f"abc{whole.choices[0].text}\n"
    assert httpx.get(f"{found[0]}/v1/models").status_code == 401
    command.send(number)
    result = command.wait()
    assert "Traceback" not in result.stderr
    assert re.search(r"Stopped after \d+ requests and \d+ tokens written", result.stderr)
    assert result.code == 0
