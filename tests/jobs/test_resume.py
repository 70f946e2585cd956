"""Going on with a run: exactly, or not at all and with a reason."""

import signal
from pathlib import Path

import pytest
from run_contents import assert_same_run, rows
from screens import Quiet
from tiny_runs import NOISY, Signalling
from tiny_text import write_corpus

from mixlab.core.config import dump_yaml, read_yaml
from mixlab.core.errors import CheckpointError, DataError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.train import start_run
from mixlab.training import checkpoint as checkpoints


@pytest.mark.parametrize("k", [1, 4, 7, 11])
def test_ctrl_c_saves_and_the_rest_is_as_if_it_had_run_through(
    k, interrupted, resume, uninterrupted
):
    run = interrupted(k)
    assert checkpoints.steps(run / "checkpoints")[-1] == k
    assert RunDir.open(run).read_json("summary.json")["status"] == "interrupted"
    assert resume(run).status == "finished"
    assert_same_run(run, uninterrupted)


def test_a_stop_at_the_last_update_is_a_finished_run(train_tiny):
    result = train_tiny(screen=Signalling(12, signal.SIGTERM))
    assert result.status == "finished" and result.signal is None


def test_a_second_ctrl_c_ends_at_once(train_tiny, lab, resume, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train_tiny(*NOISY, screen=Signalling(7, signal.SIGINT, times=2))
    assert checkpoints.steps(lab / "run" / "checkpoints")[-1] == 5  # nothing was saved at 7
    resume(lab / "run")
    assert_same_run(lab / "run", uninterrupted)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_status_of_a_stopped_command(number, status, fork_server, tiny_recipe, tmp_path):
    words = ["train", tiny_recipe, "train.length=1000000", "--run-dir", "run"]
    command = fork_server.start(words, cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    command.send_when(number, lambda: log.exists() and log.stat().st_size > 0)
    result = command.wait()
    assert result.code == status, result.stderr
    assert "mixlab train --resume run" in result.stdout
    steps = checkpoints.steps(tmp_path / "run" / "checkpoints")
    assert steps[-1] == rows(log)[-1]["step"]
    assert (tmp_path / "run" / "report.md").exists()


def test_two_ctrl_c_end_a_command(fork_server, tiny_recipe, tmp_path):
    # The first wish to stop waits for the update at hand, which evaluates for minutes here.
    words = ["train", tiny_recipe, "train.length=1000000", "train.batch_size=4"]
    command = fork_server.start([*words, "--run-dir", "run"], cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    command.send_when(signal.SIGINT, lambda: log.exists() and log.stat().st_size > 0)
    command.send(signal.SIGINT)
    result = command.wait()
    assert result.code == 130 and "Traceback" not in result.stderr, result.stderr


def test_a_run_stopped_before_its_first_checkpoint_begins_again(interrupted, resume, uninterrupted):
    run = interrupted(3)
    checkpoints.prune(run / "checkpoints", [])
    resume(run)
    assert_same_run(run, uninterrupted)


def test_a_finished_run_is_not_resumed(finished_run, resume, lab):
    with pytest.raises(RunError, match=r"finished at step 12.*mixlab extend"):
        resume(lab / "run")


def test_a_kill_between_the_last_save_and_the_summary(finished_noisy_run, resume, lab):
    (lab / "run" / "summary.json").unlink()
    before = rows(lab / "run" / "metrics.jsonl")
    assert resume(lab / "run").status == "finished"
    assert rows(lab / "run" / "metrics.jsonl") == before


def test_a_kill_between_the_last_save_and_the_summary_of_an_early_stop(train_tiny, resume, lab):
    """The counters of early stopping are judged before the next update, not after it."""
    stopping = ("train.early_stopping={patience: 1, min_delta: 10}", "train.length=40")
    first = train_tiny(*stopping)
    assert first.status == "stopped early" and first.summary["steps"] == 4
    (lab / "run" / "summary.json").unlink()
    again = resume(lab / "run")
    assert (again.status, again.summary["steps"]) == ("stopped early", 4)


def test_it_says_where_it_goes_on(train_tiny, resume, lab):
    with pytest.raises(KeyboardInterrupt):
        train_tiny(screen=Signalling(8, signal.SIGINT, times=2))
    screen = Signalling(11, signal.SIGINT)  # 5 was saved, 6 and 7 were only recorded
    resume(lab / "run", screen=screen)
    assert "Going on from step 5 of 12; 2 steps that were not saved are repeated." in screen.notes
    last = Quiet()
    resume(lab / "run", screen=last)
    assert "Going on from step 11 of 12." in last.notes


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_damaged_summary_is_made_again(content, interrupted, resume):
    run = interrupted(9)
    (run / "summary.json").write_bytes(content.encode("latin-1"))
    assert resume(run).summary["status"] == "finished"
    assert RunDir.open(run).read_json("summary.json")["status"] == "finished"


# --- changed since --------------------------------------------------------------------------------


def test_changed_settings_are_named(interrupted, resume):
    run = interrupted(4)
    with pytest.raises(RunError) as error:
        resume(run, overrides=["train.batch_size=8", "train.optimizer.lr=0.5", "seed=3"])
    assert "train.batch_size: 4 -> 8" in str(error.value)
    assert "train.optimizer.lr: 0.01 -> 0.5" in str(error.value)
    assert "seed" not in str(error.value)  # given, but the same


def test_a_changed_recipe_is_named_and_the_same_one_goes_on(interrupted, resume, tiny_recipe):
    run = interrupted(4)
    with pytest.raises(RunError, match=r"model.dropout: 0.1 -> 0.0"):
        resume(run, recipe=str(tiny_recipe))
    assert resume(run, recipe=str(tiny_recipe), overrides=list(NOISY)).status == "finished"


def test_an_edited_config_file_is_noticed(interrupted, resume):
    run = interrupted(4)
    tree = read_yaml(run / "config.yaml")
    tree["train"]["optimizer"]["weight_decay"] = 0.5
    (run / "config.yaml").write_text(dump_yaml(tree))
    with pytest.raises(RunError, match=r"train.optimizer.weight_decay: 0.1 -> 0.5"):
        resume(run)


def test_changed_text_is_refused(lab, tiny_recipe, quiet, no_pictures, resume):
    corpus = write_corpus(lab / "text")
    overrides = [f"data.corpus.path={corpus}"]
    start_run(
        str(tiny_recipe), overrides, run_dir=lab / "run", screen=Signalling(4, signal.SIGTERM)
    )
    (corpus / "doc03.txt").write_text("quite another text\n" * 40)
    with pytest.raises(RunError, match="its text has changed"):
        resume(lab / "run")
    for file in corpus.iterdir():
        file.unlink()
    with pytest.raises(DataError):
        resume(lab / "run")


# --- which checkpoint -----------------------------------------------------------------------------


def damage(path):
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


def test_a_damaged_last_checkpoint_is_refused_and_an_older_one_serves(
    train_tiny, resume, lab, uninterrupted
):
    train_tiny(*NOISY, screen=Signalling(11, signal.SIGINT))
    folder = lab / "run" / "checkpoints"
    older, last = checkpoints.steps(folder)[-2:]
    damage(checkpoints.step_path(folder, last))
    with pytest.raises(CheckpointError) as error:
        resume(lab / "run")
    message = str(error.value)
    assert f"step-{last:06d}: model.safetensors" in message
    assert f"newest good checkpoint is {checkpoints.step_path(folder, older)}" in message
    resume(lab / "run", at_step=older)
    assert_same_run(lab / "run", uninterrupted)


def test_an_earlier_step_of_a_finished_run_can_be_run_again(train_tiny, resume, lab, uninterrupted):
    """A stop on the way must find neither the old end nor the old later checkpoints."""
    train_tiny(*NOISY, "checkpoint.keep_every=5")
    stopped = resume(lab / "run", at_step=5, screen=Signalling(7, signal.SIGINT))
    assert stopped.status == "interrupted"
    assert checkpoints.steps(lab / "run" / "checkpoints")[-1] == 7
    (lab / "run" / "summary.json").unlink()  # as after a kill
    assert resume(lab / "run").status == "finished"
    assert rows(lab / "run" / "metrics.jsonl") == rows(uninterrupted / "metrics.jsonl")


def test_a_step_that_was_not_kept(interrupted, resume):
    with pytest.raises(CheckpointError, match=r"--at-step 3: expected the step of a kept.*: 4"):
        resume(interrupted(4), at_step=3)


def test_the_best_pointer_is_put_right_after_a_kill(interrupted, resume):
    """A kill may come between saving the best checkpoint and pointing at it."""
    run = interrupted(9)
    folder = run / "checkpoints"
    best = checkpoints.read_best(folder)
    (folder / "best.json").unlink()
    resume(run, screen=Signalling(11, signal.SIGINT))
    assert checkpoints.read_best(folder) == best


# --- one folder, one process ----------------------------------------------------------------------


def test_a_second_process_is_refused(interrupted, fork_server, lab):
    run = interrupted(4)
    with RunDir.open(run).lock():
        result = fork_server.run(["train", "--resume", run], cwd=lab)
    assert result.code == 2 and "in use by another process" in result.stderr


def test_an_existing_folder_is_refused_before_anything_else(train_tiny, lab):
    (lab / "run").mkdir()
    with pytest.raises(RunError, match="is a folder already: expected a name that is still free"):
        train_tiny()


def test_a_folder_that_cannot_be_made(lab, tiny_recipe, quiet):
    with pytest.raises(RunError, match="cannot be made"):
        start_run(str(tiny_recipe), run_dir=Path("/proc/mixlab/run"), screen=quiet)
    (lab / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        start_run(str(tiny_recipe), run_dir=lab / "file" / "run", screen=quiet)


def test_a_run_folder_that_is_not_there(resume, lab):
    with pytest.raises(RunError, match="no run folder"):
        resume(lab / "nothing")


def test_the_resolved_config_reproduces_the_run(uninterrupted, lab, quiet, no_pictures):
    start_run(str(uninterrupted / "config.yaml"), run_dir=lab / "again", screen=quiet)
    assert_same_run(lab / "again", uninterrupted)
