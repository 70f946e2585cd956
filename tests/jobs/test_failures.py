"""When something gives way in the middle of a run: what is kept, and what the person is told."""

import errno
import json
import math
import os
import time

import pytest
import torch
from run_contents import assert_same_run, rows
from tiny_runs import NOISY

from mixlab.core.errors import CheckpointError, LabError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs import kinds
from mixlab.training import checkpoint as checkpoints
from mixlab.training.loop import NonFiniteLossError


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("n_writes", [0, 3])
def test_disk_full_while_saving_loses_nothing(
    n_writes, train_tiny, resume, lab, uninterrupted, monkeypatch
):
    """The second save fails after some of its files; the first one is whole and goes on."""
    write, saves, left = checkpoints.write_synced, [], [n_writes]

    def failing(path, pieces):
        if "step-000010" in str(path):
            saves.append(path)
            left[0] -= 1
            if left[0] < 0:
                full_disk()
        return write(path, pieces)

    monkeypatch.setattr("mixlab.training.checkpoint.write_synced", failing)
    with pytest.raises(CheckpointError) as error:
        train_tiny(*NOISY, "checkpoint.every=2", "eval.every=100")
    message = str(error.value)
    assert "step-000010 could not be written: No space left on device" in message
    assert "The newest good checkpoint is" in message and "step-000008" in message
    assert len(saves) == n_writes + 1
    checkpoints.load(checkpoints.step_path(lab / "run" / "checkpoints", 8))
    monkeypatch.setattr("mixlab.training.checkpoint.write_synced", write)  # somebody made room
    assert resume(lab / "run").status == "finished"
    want = rows(uninterrupted / "metrics.jsonl")
    assert rows(lab / "run" / "metrics.jsonl") == want


def test_a_full_disk_at_the_last_save_is_no_finished_run(train_tiny, resume, lab, monkeypatch):
    """The save is written while the run might already be summing up."""
    save = checkpoints.save

    def failing(folder, step, tensors, state):
        if step == 12:
            time.sleep(0.2)
            full_disk()
        return save(folder, step, tensors, state)

    monkeypatch.setattr("mixlab.training.checkpoint.save", failing)
    with pytest.raises(OSError, match="No space left on device"):
        train_tiny()
    assert not (lab / "run" / "summary.json").exists()
    monkeypatch.setattr("mixlab.training.checkpoint.save", save)
    assert resume(lab / "run").status == "finished"


def test_the_summary_comes_after_the_last_save(train_tiny, monkeypatch):
    save, write, order = checkpoints.save, RunDir.write_json, []

    def slow(folder, step, tensors, state):
        time.sleep(0.1)
        found = save(folder, step, tensors, state)
        order.append(step)
        return found

    def noted(self, name, document):
        order.append(name)
        write(self, name, document)

    monkeypatch.setattr("mixlab.training.checkpoint.save", slow)
    monkeypatch.setattr(RunDir, "write_json", noted)
    train_tiny()
    assert order[order.index(12) + 1 :] == ["summary.json"]


@pytest.mark.parametrize("log", ["metrics.jsonl", "evals.jsonl"])
def test_disk_full_while_logging(log, train_tiny, resume, lab, uninterrupted, monkeypatch):
    append, n_lines = RunDir.append, [0]

    def failing(self, name, row):
        n_lines[0] += name == log
        if name == log and row["step"] == 8:
            raise RunError(f"{name} cannot be written. The disk is full: free some space.")
        append(self, name, row)

    monkeypatch.setattr(RunDir, "append", failing)
    with pytest.raises(RunError, match="disk is full"):
        train_tiny(*NOISY)
    monkeypatch.setattr(RunDir, "append", append)
    resume(lab / "run")
    assert_same_run(lab / "run", uninterrupted)


def test_a_limit_on_file_sizes_is_an_error_of_one_paragraph(fork_server, tiny_recipe, tmp_path):
    """The system itself refuses, as it does on a full disk."""
    words = ["train", tiny_recipe, "--run-dir", "run"]
    command = fork_server.start(words, cwd=tmp_path, file_bytes=20_000)
    result = command.wait()
    assert result.code == 2, result.stderr
    assert "Traceback" not in result.stderr and "step-000004" in result.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    again = fork_server.run(["train", "--resume", "run"], cwd=tmp_path)
    assert again.code == 0, again.stderr


# --- losses that are no numbers -------------------------------------------------------------------


def poison(session, at_step):
    """Turn the loss to NaN at one update, by the gain of the last norm."""
    step = session.optimizer.step
    n = [0]

    def poisoned(*args):
        step(*args)
        n[0] += 1
        if n[0] == at_step - 1:
            with torch.no_grad():
                session.model.norm.weight.fill_(math.nan)

    session.optimizer.step = poisoned


@pytest.fixture
def poisoned(monkeypatch):
    def at(step):
        kind = kinds.KINDS["language_model"]

        def opened(*args):
            session = kind.open_session(*args)
            poison(session, step)
            return session

        poisonous = kind._replace(open_session=opened)
        monkeypatch.setitem(kinds.KINDS, "language_model", poisonous)

    return at


def test_a_loss_that_is_not_finite_ends_the_run(poisoned, train_tiny, lab):
    poisoned(12)
    with pytest.raises(NonFiniteLossError) as error:
        train_tiny()
    message = str(error.value)
    assert message.startswith("step 12: the loss is nan")
    assert "the last good checkpoint is" in message and "step-000010" in message
    assert [row["step"] for row in rows(lab / "run" / "metrics.jsonl")] == list(range(1, 12))
    summary = json.loads((lab / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and "step 12" in summary["error"]
    # Nothing that was saved is poisoned.
    last = checkpoints.load(checkpoints.newest_good(lab / "run" / "checkpoints"))
    assert all(t.isfinite().all() for t in last.tensors["model"].values())


def test_weights_that_are_not_finite_are_never_saved(poisoned, train_tiny, lab):
    """The update before a save spoils them, after a loss that was still good."""
    poisoned(11)
    with pytest.raises(NonFiniteLossError, match=r"step 10: this update made weights"):
        train_tiny()
    assert checkpoints.steps(lab / "run" / "checkpoints")[-1] == 8


def test_a_loss_that_is_not_finite_before_any_checkpoint(poisoned, train_tiny):
    poisoned(2)
    with pytest.raises(NonFiniteLossError, match="there is no checkpoint yet"):
        train_tiny()


def test_the_failed_command_writes_a_report(fork_server, tiny_recipe, tmp_path):
    """A rate that no model survives."""
    words = ["train", tiny_recipe, "train.optimizer.lr=1e30", "train.max_grad_norm=null"]
    result = fork_server.run([*words, "--run-dir", "run"], cwd=tmp_path, whole=True)
    assert result.code == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("mixlab train: step ") and "train.optimizer.lr" in last
    assert "failed" in (tmp_path / "run" / "report.md").read_text().lower()
    assert (tmp_path / "run" / "plots" / "training_curves.png").exists()


def test_errors_of_a_run_are_of_the_lab():
    assert issubclass(NonFiniteLossError, LabError)
