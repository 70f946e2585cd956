"""A child run goes on from its parent: learning rate without a jump, parent untouched."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from run_contents import assert_same_run, rows
from tiny_runs import NOISY, Signalling
from tiny_text import write_corpus

from mixlab.core.config import decode
from mixlab.core.errors import CheckpointError, ConfigError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.extend import extend_run, plan_extension
from mixlab.jobs.train import start_run
from mixlab.training import checkpoint as checkpoints
from mixlab.training.config import TrainConfig
from mixlab.training.schedule import lr_factor


@pytest.fixture
def extend(quiet, no_pictures):
    def run(path, n_steps, screen=quiet, **settings):
        return extend_run(path, n_steps=n_steps, screen=screen, **settings)

    return run


def lrs(path):
    return [row["lr"] for row in rows(path / "metrics.jsonl")]


def test_a_child_of_a_constant_rate_equals_a_longer_run(
    finished_noisy_run, train_tiny, extend, lab
):
    child = extend(lab / "run", 20)
    assert child.run.path == lab / "run-to-20" and child.status == "finished"
    train_tiny(*NOISY, "train.length=20", name="whole")
    got, want = rows(child.run.metrics_path), rows(lab / "whole" / "metrics.jsonl")
    assert got == want
    assert child.summary["parent"] == {"run": str((lab / "run").resolve()), "step": 12}


def test_wsd_goes_on_from_before_its_decay(train_tiny, extend, lab, quiet):
    """20 steps, decay from 10 on: extended to 30, the parent's checkpoint of step 10 serves."""
    schedule = "train.schedule={kind: wsd, warmup_steps: 4, decay_frac: 0.5}"
    train_tiny(schedule, "train.length=20")
    before = (lab / "run" / "metrics.jsonl").read_bytes()
    child = extend(lab / "run", 30)
    parent = child.run.read_json("parent.json")
    assert (parent["step"], parent["bridge"]) == (10, None)
    assert any("Going on from step 10" in note and "0.01" in note for note in quiet.notes)
    # By hand: warm-up in 4, the peak to step 15, then down by 1/15 of the peak per step.
    want = [0.01 * min(1, (s + 1) / 4, (30 - s) / 15) for s in range(30)]
    assert lrs(child.run.path) == pytest.approx(want, rel=1e-12)
    assert (lab / "run" / "metrics.jsonl").read_bytes() == before
    # The same updates as a run that was planned for 30 steps: the decay does not start earlier.
    train_tiny(schedule, "train.length=30", name="whole")
    assert rows(child.run.metrics_path) == rows(lab / "whole" / "metrics.jsonl")


def test_cosine_is_led_up_over_a_bridge(train_tiny, extend, lab):
    """No step of the rate is larger than the bridge's slope."""
    train_tiny("train.schedule={kind: cosine, warmup_steps: 2, floor_frac: 0.1}")
    child = extend(lab / "run", 52)
    facts = child.run.read_json("parent.json")
    assert facts["step"] == 12 and facts["bridge"]["n_steps"] == 4
    found = lrs(child.run.path)
    slope = 0.01 / 4  # a bridge of 4 updates leads up by less than the peak
    jumps = [abs(b - a) for a, b in pairwise(found[11:])]
    assert max(jumps) <= slope
    assert found[11] == pytest.approx(facts["parent_lr"])
    assert found[12] == pytest.approx(facts["first_lr"])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 3, 12, 40])
@pytest.mark.parametrize("last", [1, 5, 9, 12])
def test_no_schedule_makes_a_jump(kind, warmup, last):
    """The rate changes by no more per step than the two schedules and the bridge do."""
    tree = {
        "length": 12, "batch_size": 1, "optimizer": {"kind": "adamw"},
        "schedule": {"kind": kind, "warmup_steps": warmup},
    }  # fmt: skip
    train = decode(TrainConfig, tree)
    start_of_decay = train.schedule.decay_start(12)
    saved = sorted({last, *([start_of_decay] if 0 < start_of_decay <= last else [])})
    start = plan_extension(train, saved, 40)
    parent = [lr_factor(train.schedule, None, s, 12) for s in range(start.step)]
    child = [lr_factor(train.schedule, start.bridge, s, 40) for s in range(start.step, 40)]
    own = [train.schedule.factor(s, 40) for s in range(40)]
    steepest = max(abs(b - a) for a, b in pairwise(own))
    bridge = 1 / start.bridge.n_steps if start.bridge else 0.0
    assert abs(child[0] - parent[-1]) <= steepest + bridge + 1e-12
    assert child[-1] == own[-1]


def test_a_child_that_is_killed_is_resumed(finished_noisy_run, extend, resume, lab):
    extend(lab / "run", 20, run_dir=lab / "whole")
    child = lab / "run-to-20"
    with pytest.raises(KeyboardInterrupt):
        extend(lab / "run", 20, screen=Signalling(14, signal.SIGINT, times=2))
    assert checkpoints.steps(child / "checkpoints") == [12]  # before its first save
    assert resume(child).status == "finished"
    assert_same_run(child, lab / "whole")


def test_a_child_that_cannot_be_made_leaves_nothing(finished_run, extend, lab, monkeypatch, resume):
    """A failure while the child is being made must not leave a run that begins at step 0."""
    with monkeypatch.context() as broken:
        broken.setattr("mixlab.training.checkpoint.save", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extend(lab / "run", 20)
    with pytest.raises(RunError, match="no run folder"):
        resume(lab / "run-to-20")
    assert extend(lab / "run", 20).status == "finished"


DAMAGE = {
    "gone": (lambda path: path.unlink(), "is missing"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "lines were lost"),
    "not text": (lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]), "line 1"),
    "not JSON": (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "line 1"),
    "moved": (lambda path: path.write_bytes(b'{"a":1}\n' + path.read_bytes()), "end a line"),
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "evals.jsonl"])
def test_a_parent_that_lost_its_figures(name, finished_run, extend, lab):
    path = finished_run / name
    whole = path.read_bytes()
    for change, words in DAMAGE.values():
        change(path)
        with pytest.raises(RunError, match=rf"{name}.*{words}"):
            extend(lab / "run", 14)
        assert not (lab / "run-to-14").exists()
        path.write_bytes(whole)
    assert extend(lab / "run", 14).status == "finished"


def test_a_parent_that_is_being_trained(finished_run, lab, fork_server):
    with RunDir.open(finished_run).lock():
        result = fork_server.run(["extend", finished_run, "--steps", "14"], cwd=lab)
    assert result.code == 2 and "in use by another process" in result.stderr
    assert "then try again" in " ".join(result.stderr.split())
    assert not (lab / "run-to-14").exists()


def test_a_childs_child(train_tiny, extend, lab):
    train_tiny("train.schedule={kind: cosine}")
    child = extend(lab / "run", 16, screen=Signalling(13, signal.SIGINT)).run.path
    first = extend(child, 20).run
    assert first.read_json("parent.json")["name"] == "tiny"
    assert [row["step"] for row in rows(first.metrics_path)] == list(range(1, 21))
    # From the child's own first checkpoint, which lies where its bridge begins.
    fresh = lab / "fresh"
    with pytest.raises(KeyboardInterrupt):
        extend(lab / "run", 16, run_dir=fresh, screen=Signalling(14, signal.SIGINT, times=2))
    second = extend(fresh, 18).run
    assert second.read_json("parent.json")["step"] == 12
    found = lrs(second.path)
    assert found[11] == pytest.approx(second.read_json("parent.json")["parent_lr"])


def test_what_cannot_be_extended(finished_run, extend, lab):
    with pytest.raises(RunError, match=r"--steps 12: expected more than the 12"):
        extend(lab / "run", 12)
    extend(lab / "run", 13)
    with pytest.raises(RunError, match=r"is a run already.*train --resume"):
        extend(lab / "run", 13)
    with pytest.raises(RunError, match="no run folder"):
        extend(lab / "nothing", 13)
    checkpoints.prune(lab / "run" / "checkpoints", [])
    with pytest.raises(CheckpointError, match="has no checkpoint to go on from"):
        extend(lab / "run", 20)


def test_a_parent_that_one_stands_in(finished_run, extend, lab, monkeypatch):
    monkeypatch.chdir(lab / "run")
    assert extend(Path(), 13).run.path == lab / "run-to-13"


def test_a_child_needs_the_parents_text(lab, tiny_recipe, quiet, extend, no_pictures):
    corpus = write_corpus(lab / "text")
    start_run(str(tiny_recipe), [f"data.corpus.path={corpus}"], run_dir=lab / "run", screen=quiet)
    (corpus / "doc03.txt").write_text("quite another text\n" * 40)
    with pytest.raises(RunError, match="its text has changed"):
        extend(lab / "run", 20)
    assert not (lab / "run-to-20").exists()


def test_a_childs_config_is_no_recipe(train_tiny, extend, lab, quiet):
    """Its bridge begins where the parent stopped; from step 0 there is none."""
    train_tiny("train.schedule={kind: cosine}")
    child = extend(lab / "run", 20).run
    with pytest.raises(ConfigError, match=r"train.bridge.*mixlab extend.*train.bridge=null"):
        start_run(str(child.config_path), run_dir=lab / "again", screen=quiet)
    start_run(
        str(child.config_path), ["train.bridge=null"], run_dir=lab / "again", screen=quiet
    )  # a run of its own
    assert json.loads((lab / "again" / "summary.json").read_text())["steps"] == 20
