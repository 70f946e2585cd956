"""Finished runs beside each other: arms, tests, verdicts, and what is refused."""

import json

import pytest
from PIL import Image
from stub_runs import LOOPED, PUZZLES, config, manifest, write_arm, write_run

from mixlab.core.errors import LabError
from mixlab.jobs.config import load_config
from mixlab.studies import comparison
from mixlab.studies.comparison import compare, open_comparison

WIDER = "model.blocks.full.channel_mixer.d_ff=32"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, request):
    """Its own folder, and no pictures where nobody looks at them."""
    monkeypatch.chdir(tmp_path)
    if "files" not in request.node.name:
        monkeypatch.setattr(comparison, "write_comparison_plots", lambda summary, path: path)


def two_arms(tmp_path, first, second):
    a = write_arm(tmp_path, "plain", config(), first)
    b = write_arm(tmp_path, "wide", config("name=wide", WIDER), second)
    return a, b


def test_a_clear_difference_names_a_winner(tmp_path):
    a, b = two_arms(tmp_path, [4.0, 4.1, 4.2], [3.6, 3.71, 3.79])
    done = compare(*a, *b, output="out")
    row = done.summary["against_baseline"][0]
    assert (row["arm"], row["baseline"], row["verdict"]) == ("wide", "plain", "better")
    assert row["difference"]["mean"] == pytest.approx(-0.4)
    # The share of the baseline's loss, 4.1, that is gone.
    assert row["effect"]["reduction_percent"] == pytest.approx(100 * 0.4 / 4.1)
    assert "wide is better than plain: -0.4000 nats" in done.text
    assert ", reduction +9.76 %" in done.text
    assert [arm["letters"] for arm in done.summary["arms"]] == ["b", "a"]


def test_noise_is_undecided_and_says_how_many_seeds_it_would_take(tmp_path):
    a, b = two_arms(tmp_path, [4.0, 4.1, 4.2], [4.2, 4.1, 4.22])
    done = compare(*a, *b, output="out")
    row = done.summary["against_baseline"][0]
    assert row["verdict"] == "undecided" and row["seeds_needed"] > 3
    assert f"would need about {row['seeds_needed']} seeds" in done.text
    assert "better" not in done.text and "worse" not in done.text


def test_one_seed_names_no_winner_however_large_the_difference(tmp_path):
    a, b = two_arms(tmp_path, [4.0], [1.0])
    text = compare(*a, *b, output="out").text
    assert "undecided" in text and "one seed" in text and "Noise: unknown" in text


def test_only_seeds_that_both_have_are_paired(tmp_path):
    a, b = two_arms(tmp_path, [4.0, 4.1, 4.2], [3.6, 3.7])
    row = compare(*a, *b, output="out").summary["against_baseline"][0]
    assert row["difference"]["seeds"] == [1, 2] or row["difference"]["seeds"] == (1, 2)


def test_files_hold_what_was_found(tmp_path):
    a, b = two_arms(tmp_path, [4.0, 4.1], [3.6, 3.7])
    done = compare(*a, *b, output="out")
    stored = json.loads((tmp_path / "out" / "comparison_summary.json").read_text())
    assert stored == json.loads(json.dumps(done.summary))
    assert open_comparison("out").text == done.text
    with Image.open(tmp_path / "out" / "comparison_plots.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
    for word in ("parameters", "FLOPs", "tokens/s", "ln V", "unigram entropy", "memory"):
        assert word in done.text


def test_a_run_may_be_given_as_an_object(tmp_path):
    import mixlab

    a, b = two_arms(tmp_path, [4.0], [3.9])
    done = mixlab.compare(mixlab.open_run(a[0]), mixlab.open_run(b[0]), output="out")
    assert [arm["name"] for arm in done.summary["arms"]] == ["plain-1", "wide-1"]


def test_puzzles_are_compared_by_those_solved(tmp_path):
    cfg = load_config(PUZZLES, ["train.length=8 steps"])
    fixed = load_config(PUZZLES, ["train.length=8 steps", "name=fixed", "model.halting.kind=fixed",
                                  "model.halting.halt_max_steps=6"])  # fmt: skip
    task = {"task": "sudoku", "content_hash": "p"}
    a = write_arm(tmp_path, "fixed", fixed, [0.5, 0.52, 0.51], data=task)
    b = write_arm(tmp_path, "bce", cfg, [0.7, 0.73, 0.7], data=task)
    done = compare(*a, *b, output="out")
    assert done.summary["metric"]["name"] == "exact_accuracy"
    assert "sudoku-4x4 is better than fixed: +20.00 points" in done.text
    fixed_steps = done.summary["controls"][1]["rows"][3]
    assert fixed_steps["arm"] == "fixed" and fixed_steps["verdict"] == "better"


# --- unequal things -----------------------------------------------------------------------------


def refused(*arguments, **settings):
    with pytest.raises(LabError) as error:
        compare(*arguments, output="out", **settings)
    return str(error.value)


def pair(tmp_path, second_config, **second):
    a = write_run(tmp_path / "a", config(), 4.0)
    b = write_run(tmp_path / "b", second_config, 3.9, **second)
    return str(a), str(b)


def test_other_text_is_refused(tmp_path):
    assert "same text" in refused(*pair(tmp_path, config(WIDER), data=manifest(content="c2")))


def test_other_kinds_are_refused(tmp_path):
    cfg = load_config(PUZZLES, ["train.length=8 steps"])
    assert "of kind refine" in refused(*pair(tmp_path, cfg))


def test_validation_sets_of_other_length_are_refused(tmp_path):
    assert "eval.n_tokens = 256 and 512" in refused(
        *pair(tmp_path, config(WIDER, "eval.n_tokens=512"))
    )


@pytest.mark.parametrize(
    ("cfg", "data", "word"),
    [
        (config(WIDER), manifest(tokenizer="t2"), "another tokenizer"),
        (config(WIDER, "data.seq_len=32", "train.batch_size=2"), manifest(), "of 32 tokens"),
    ],
)
def test_other_tokens_are_compared_in_bits_per_byte(tmp_path, cfg, data, word):
    done = compare(*pair(tmp_path, cfg, data=data), output="out")
    assert done.summary["metric"]["name"] == "bits_per_byte"
    assert word in done.text and "bits per byte decide" in done.text
    assert done.summary["arms"][1]["mean"] == pytest.approx(1.3)


def test_other_amounts_of_text_are_said_and_no_winner_is_named(tmp_path):
    a = write_arm(tmp_path, "a", config(), [4.0, 4.1, 4.2])
    b = write_arm(tmp_path, "b", config("name=long", "train.length=16 steps"), [3.0, 3.1, 3.2])
    done = compare(*a, *b, output="out")
    assert done.summary["against_baseline"][0]["verdict"] == "undecided"
    assert "unequal amounts of text" in done.text and "no winner is named" in done.text


# --- bad input ----------------------------------------------------------------------------------


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    a, b = pair(tmp_path, config(WIDER), status=None)
    message = refused(a, b)
    assert "is not finished (step 8)" in message and f"mixlab train --resume {b}" in message


def test_a_run_that_was_interrupted_or_failed_is_refused(tmp_path):
    assert "is interrupted" in refused(*pair(tmp_path, config(WIDER), status="interrupted"))
    path = write_run(tmp_path / "c", config(), status="failed")
    assert "failed" in refused(str(path), str(tmp_path / "a"))


def test_a_run_without_evaluations_is_refused(tmp_path):
    a, b = pair(tmp_path, config(WIDER))
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    (tmp_path / "b" / "summary.json").write_text(json.dumps({**summary, "final": None}))
    (tmp_path / "b" / "evals.jsonl").unlink()
    assert "has no evaluation" in refused(a, b)


def test_a_damaged_summary_is_named(tmp_path):
    a, b = pair(tmp_path, config(WIDER))
    (tmp_path / "b" / "summary.json").write_text("{")
    assert "summary.json" in refused(a, b)


def test_the_same_run_twice_is_refused(tmp_path):
    a, b = pair(tmp_path, config())
    assert "given twice" in refused(a, a)
    assert "same run made twice" in refused(a, b)


def test_seeds_of_one_thing_are_no_comparison(tmp_path):
    a = write_arm(tmp_path, "plain", config(), [4.0, 4.1])
    assert "only plain was given, 2 runs of it" in refused(*a)


def test_unknown_things_name_the_nearest(tmp_path):
    write_run(tmp_path / "runs" / "first", config())
    assert "Did you mean runs/first?" in refused("runs/frist", "quickstart")
    assert "Did you mean 'quickstart'?" in refused("quikstart", "moe")
    with pytest.raises(LabError, match="nothing to compare"):
        compare()


def test_overrides_need_a_recipe(tmp_path):
    a, b = two_arms(tmp_path, [4.0], [3.9])
    assert "runs are compared as they are" in refused(*a, *b, overrides=["train.length=9"])


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], [7], list(range(200))])
def test_bad_seeds(tmp_path, seeds):
    a, b = two_arms(tmp_path, [4.0], [3.9])
    assert "seeds = " in refused(*a, *b, seeds=seeds)


def test_a_folder_with_other_content_is_left_alone(tmp_path):
    a, b = two_arms(tmp_path, [4.0], [3.9])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    assert "holds other content" in refused(*a, *b)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_a_file_in_place_of_the_folder(tmp_path):
    a, b = two_arms(tmp_path, [4.0], [3.9])
    (tmp_path / "out").write_text("")
    assert "is a file" in refused(*a, *b)


def test_controls_need_something_recursive(tmp_path):
    a, b = two_arms(tmp_path, [4.0], [3.9])
    assert "--controls" in refused(*a, *b, controls=True)


def test_a_recursive_run_alone_lists_its_missing_controls(tmp_path):
    a = write_arm(tmp_path, "plain", config(), [4.0, 4.1])
    b = write_arm(tmp_path, "looped", config(*LOOPED), [4.05, 4.1], update_s=1.5)
    done = compare(*a, *b, output="out")
    rows = {row["kind"]: row for row in done.summary["controls"][0]["rows"]}
    assert rows["same-params"]["arm"] == "plain" and rows["same-params"]["is_within"]
    for kind in ("same-flops", "same-time", "fixed-steps"):
        assert rows[kind]["status"] == "missing"
        assert rows[kind]["command"] == "mixlab compare --controls -o out"
    assert done.text.count("MISSING") == 3
