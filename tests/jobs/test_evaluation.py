"""Evaluation of a run: what is written, what is taken from before, who is sent elsewhere."""

import json

import pytest
from tiny_runs import PUZZLES

from mixlab.core.config import decode
from mixlab.core.errors import CheckpointError, LabError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.evaluation.choice import chosen_parts
from mixlab.jobs.evaluation.memory import NeedlePart, RecallPart
from mixlab.jobs.evaluation.parts import ChoicesPart, LossPart, TextPart
from mixlab.jobs.evaluation.run import evaluate_run, read_scores


@pytest.fixture
def run(finished_run):
    return finished_run


def values(result):
    return {(score.task, score.metric): score.value for score in result.scores}


def test_the_loss_is_that_of_training(run, quiet):
    n_tokens = 256  # as the recipe evaluates
    (result,) = evaluate_run(run, [LossPart(n_tokens=n_tokens)], checkpoint="last", screen=quiet)
    summary = RunDir.open(run).read_json("summary.json")
    for split, row in (("validation", summary["final"]), ("test", summary["test"])):
        assert row["n_tokens"] == n_tokens
        for metric in ("loss_nats", "bits_per_byte", "accuracy"):
            assert values(result)[split, metric] == pytest.approx(row[metric], rel=1e-6)
    (whole,) = evaluate_run(run, [LossPart()], screen=quiet)
    assert all(score.standard_error > 0 for score in whole.scores)
    assert any("too few for a standard error" in note for note in result.notes)


def test_every_part_writes_a_file_that_says_how_it_was_made(run, lab, quiet):
    (lab / "text.txt").write_text("abc def\n" * 30)
    (lab / "q.jsonl").write_text('{"context": "a b", "choices": ["c", "dd"], "answer": 1}\n' * 3)
    parts = [
        TextPart(path=lab / "text.txt"), ChoicesPart(path=lab / "q.jsonl", limit=2),
        RecallPart(pairs=(4, 99), n=3), NeedlePart(lengths=(60,), depths=(0.5,), n=3, n_choices=4),
    ]  # fmt: skip
    told = []
    results = evaluate_run(run, parts, screen=quiet, tell=told.append)
    assert told == results
    names = ["text-text", "choices-q", "recall", "needle"]
    assert [result.path.name for result in results] == [f"{name}.json" for name in names]
    for part, result in zip(parts, results, strict=True):
        document = json.loads(result.path.read_text())
        assert document["format"] == 1 and document["step"] == 12
        assert document["settings"]["kind"] == part.kind and document["settings"]["weights"]
        assert [row["task"] for row in document["scores"]] == [s.task for s in result.scores]
        for row in document["scores"]:
            assert set(row) == {
                "task", "metric", "value", "standard_error", "n", "cases", "chance",
                "higher_is_better",
            }  # fmt: skip
            assert row["n"] > 0 and row["chance"] > 0
    assert values(results[1]).keys() == {("q.jsonl", "acc"), ("q.jsonl", "acc_norm")}
    assert results[1].scores[0].n == 2
    assert "99 pairs: left out, as it takes 214 tokens" in results[2].notes[0]
    assert len(read_scores(RunDir.open(run))) == 4


def test_what_was_measured_is_not_measured_again(run, lab, quiet):
    text = lab / "text.txt"
    text.write_text("abc def\n" * 30)
    part = TextPart(path=text)
    (first,) = evaluate_run(run, [part], screen=quiet)
    (again,) = evaluate_run(run, [part], screen=quiet)
    assert first.is_new and not again.is_new
    assert (again.path, again.scores) == (first.path, first.scores)
    assert evaluate_run(run, [part], again=True, screen=quiet)[0].is_new
    # Other settings or another file under the same name are another result beside it.
    (other,) = evaluate_run(run, [TextPart(path=text, window=8)], screen=quiet)
    text.write_text("fed cba\n" * 30)
    (changed,) = evaluate_run(run, [part], screen=quiet)
    assert other.is_new and changed.is_new
    assert [other.path.name, changed.path.name] == ["text-text-2.json", "text-text-3.json"]


def test_an_evaluation_that_was_stopped_goes_on(run, lab, quiet, monkeypatch):
    parts = [RecallPart(pairs=(4,), n=2), NeedlePart(lengths=(60,), depths=(0.5,), n=2)]

    def stop(self, bench):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NeedlePart, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, parts, screen=quiet)
    recall, needle = evaluate_run(run, parts, screen=quiet)
    assert not recall.is_new and needle.is_new


def test_a_damaged_result_is_measured_anew(run, quiet):
    part = RecallPart(pairs=(4,), n=2)
    (first,) = evaluate_run(run, [part], screen=quiet)
    first.path.write_text('{"format": 1, "set')
    (again,) = evaluate_run(run, [part], screen=quiet)
    assert again.is_new and again.path == first.path and again.scores == first.scores


def test_what_cannot_be_measured_is_refused_by_name(run, lab, quiet):
    def refused(part, words, **settings):
        with pytest.raises(LabError, match=words):
            evaluate_run(run, [part], screen=quiet, **settings)

    refused(TextPart(path=lab / "none.txt"), r"none\.txt cannot be read: No such file")
    (lab / "empty.txt").write_text("")
    refused(TextPart(path=lab / "empty.txt"), r"empty\.txt: is empty")
    (lab / "latin.txt").write_bytes(b"\xe4\xf6 caf\xe9")
    refused(TextPart(path=lab / "latin.txt"), "it is not UTF-8 text")
    (lab / "text.txt").write_text("abc")
    refused(TextPart(path=lab / "text.txt", window=65), "window = 65: expected 2 to model.max_seq")
    refused(NeedlePart(lengths=(65,)), "needle_lengths = 65: expected at most model.max_seq_len")
    refused(RecallPart(pairs=(4,)), "checkpoint = '7': expected best, last, or", checkpoint="7")
    with pytest.raises(CheckpointError):
        evaluate_run(run, [], checkpoint="7")
    with pytest.raises(RunError, match="there is no run folder"):
        evaluate_run(lab / "nothing", [])


def test_settings_out_of_range_are_refused():
    for cls, tree, words in (
        (LossPart, {"n_tokens": 0}, "n_tokens = 0: expected"),
        (RecallPart, {"pairs": [0]}, "pairs"),
        (NeedlePart, {"n": 1}, "n = 1: expected"),
    ):
        with pytest.raises(LabError, match=words):
            decode(cls, tree)


NOTHING_ELSE = dict.fromkeys(
    ("window", "limit", "pairs", "lengths", "n", "task_dir", "fewshot"), None
) | {"text": [], "choices": [], "tasks": [], "recall": False, "needle": False, "loss": True,
     "n_tokens": 1000, "seed": 0, "download": False}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [("window", 16, "text"), ("limit", 3, "choices and tasks"), ("pairs", [4], "recall"),
     ("lengths", [32], "needle"), ("n", 5, "recall and needle"), ("fewshot", 0, "tasks"),
     ("task_dir", "x", "tasks"), ("download", True, "tasks")],
)  # fmt: skip
def test_a_setting_of_nothing_that_is_measured_is_refused(name, value, part):
    with pytest.raises(LabError, match=rf"^{name} = .*: belongs to {part}, which is not asked for"):
        chosen_parts(**{**NOTHING_ELSE, name: value})


def test_a_setting_is_taken_where_one_of_its_parts_is_asked_for():
    parts = chosen_parts(**{**NOTHING_ELSE, "n": 5, "pairs": [4], "recall": True})
    assert [type(part) for part in parts] == [LossPart, RecallPart]


def test_a_run_that_solves_puzzles_is_sent_to_its_own_metrics(tmp_path, quiet):
    folder = tmp_path / "puzzles"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: puzzles\n{PUZZLES}")
    (folder / "summary.json").write_text('{"test": {"exact_accuracy": 0.25}}')
    with pytest.raises(RunError, match=r"solves puzzles .* It solved 25\.0 % of its test puzzles"):
        evaluate_run(folder, [LossPart()], screen=quiet)
