"""The Python face: what is given wrongly is said in words, not by a traceback."""

import numpy as np
import pytest

from mixlab.core.errors import CheckpointError, LabError, RunError
from mixlab.jobs.api import open_run, recipe, train


def test_changes_of_a_kind_go_first_and_dots_are_taken():
    changes = {"train__optimizer__lr": 0.5, "train__optimizer__kind": "adamw", "model.n_layers": 2}
    config = recipe("quickstart", **changes)
    assert config.train.optimizer.kind == "adamw" and config.train.optimizer.lr == 0.5
    assert config.model.n_layers == 2
    for name, keys, words in (
        ("", {}, "recipe = '': expected the name"),
        (None, {}, "recipe = None: expected the name"),
        ("quickstart", {"train__": 3}, "train__ = 3: expected a key such as"),
    ):
        with pytest.raises(LabError, match=words):
            recipe(name, **keys)


@pytest.mark.parametrize("epochs", [0, -1, "x", float("nan"), float("inf"), True])
def test_passes_that_are_none(epochs, run):
    with pytest.raises(LabError, match=f"epochs = {epochs!r}: expected a number of passes above 0"):
        run.tune("instructions", epochs=epochs)


@pytest.fixture
def run(finished_run):
    return open_run(str(finished_run))


def test_a_kept_step_by_its_number(run):
    assert [run.model(step).step for step in (5, "5", np.int64(5))] == [5, 5, 5]
    for step in (3, "\u00b2", None, -5, 5.0, True):
        with pytest.raises(CheckpointError, match=r"checkpoint = .*kept checkpoint: .*5, 10, 12"):
            run.model(step)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ((5,), {}, "prompt = 5: expected text"),
        ((None,), {}, "prompt = None: expected text"),
        (("a",), {"max_new_tokens": "3"}, "max_new_tokens = '3': expected a whole number"),
        (("a",), {"max_new_tokens": 2.5}, "max_new_tokens = 2.5: expected a whole number"),
        (("a",), {"max_new_tokens": True}, "max_new_tokens = True: expected a whole number"),
        (("a",), {"seed": "1"}, "seed = '1': expected a whole number"),
        (("a",), {"temperature": "warm"}, "temperature = 'warm'"),
        (("a",), {"stop": 5}, "stop = 5: expected a list of texts"),
    ],
)
def test_settings_that_are_none(words, settings, message, run):
    with pytest.raises(LabError, match=message):
        run.generate(*words, **settings)
    assert run.generate("a", max_new_tokens=np.int64(2), seed=np.int64(3)) == run.generate(
        "a", max_new_tokens=2, seed=3
    )


@pytest.mark.parametrize("path", [None, 5, "", ["runs"], b"runs"])
def test_paths_that_are_none(path, lab, tiny_recipe):
    with pytest.raises(RunError, match=r"path = .*expected a run folder"):
        open_run(path)
    if path is not None:
        with pytest.raises(RunError, match=r"run_dir = .*expected a run folder"):
            train(recipe(tiny_recipe), run_dir=path)


def test_a_report_that_is_not_written(run):
    run.path.joinpath("report.md").unlink(missing_ok=True)
    with pytest.raises(RunError, match="has no report yet"):
        _ = run.report


def test_what_a_model_scores(run, lab, quiet):
    (lab / "text.txt").write_text("abc def\n" * 30)
    loss, text = run.evaluate(n_tokens=256, text=lab / "text.txt", checkpoint="last", screen=quiet)
    scores = {(score.task, score.metric): score for score in loss.scores}
    assert scores["validation", "loss_nats"].value == pytest.approx(
        run.summary["final"]["loss_nats"], rel=1e-6
    )
    assert [score.task for score in text.scores] == ["text.txt", "text.txt"]
    assert text.path.parent.parent.parent == run.path and text.is_new
    again = run.evaluate(loss=False, text=[str(lab / "text.txt")], checkpoint=12, screen=quiet)
    assert [part.scores for part in again] == [text.scores] and not again[0].is_new
    (recall,) = run.evaluate(loss=False, recall=True, pairs=(4,), n=2, screen=quiet)
    assert {score.task for score in recall.scores} == {"recall, 4 pairs"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": False}, "leaves nothing to measure"),
        ({"text": 5}, "text = 5: expected a file"),
        ({"n_tokens": 0}, "n_tokens = 0"),
        ({"recall": True, "pairs": [0]}, "pairs"),
        ({"loss": False, "text": "none.txt"}, "none.txt"),
        ({"checkpoint": 77}, "checkpoint = 77"),
    ],
    ids=str,
)
def test_evaluations_that_cannot_be(settings, message, run, quiet):
    with pytest.raises(LabError, match=message):
        run.evaluate(**settings, screen=quiet)
