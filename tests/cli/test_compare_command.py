"""`mixlab compare` as a person types it: help, errors, a real comparison that is interrupted."""

import json
import signal
import subprocess
import sys
import time

import pytest

from mixlab.core.json_files import read_json

TINY = ["seed=1", "train.length=8 steps", "data.split.min_validation_tokens=256", "sample.n=0",
        "checks=off", "eval.every=4", "checkpoint.every=2"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to compare"),
        (["quikstart", "moe"], "Did you mean 'quickstart'?"),
        (["runs/none", "moe"], "there is no run folder runs/none"),
        (["moe"], "only moe was given"),
        (["quickstart", "--controls"], "--controls: expected a recursive run or recipe"),
        (["quickstart", "moe", "train.lenght=9"], "train.lenght"),
        (["quickstart", "quickstart"], "quickstart is given twice"),
        (["-o", "none"], "none: holds no comparison to go on with"),
        (["quickstart", "moe", "train.length=9 seconds"], "expected steps, tokens or FLOPs"),
    ],
)
def test_mistakes_are_one_paragraph(lab, monkeypatch, capsys, words, said):
    from mixlab.cli.main import main

    monkeypatch.setattr(sys, "argv", ["mixlab", "compare", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("mixlab compare: ") and said in error
    assert error.count("\n") == 1
    assert not list(lab.glob("comparisons/*")), "nothing is made"


def test_help_has_examples(monkeypatch, capsys):
    from mixlab.cli.main import main

    monkeypatch.setattr(sys, "argv", ["mixlab", "compare", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.count("  mixlab compare ") >= 4


@pytest.mark.slow
def test_a_real_comparison_is_stopped_and_goes_on(lab, tiny_recipe, tmp_path):
    """Two arms and their controls, Ctrl-C in the middle; the second call makes what is missing."""
    looped = tmp_path / "looped.yaml"
    looped.write_text(
        f"extends: {tiny_recipe}\n"
        "model:\n  n_layers: 4\n  recursion: {kind: looped, prelude_layers: 1, core_layers: 2,"
        " coda_layers: 1, depth: {kind: uniform, halt_max_steps: 3}, halting: {kind: gate}}\n"
    )
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"extends: {tiny_recipe}\nmodel: {{n_layers: 4}}\n")
    command = [sys.executable, "-m", "mixlab", "compare", "--controls", str(plain), str(looped),
               *TINY, "--seeds", "2", "--workers", "1", "-o", "out"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((lab / "out").glob("jobs/*/done")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Go on with the same command" in out
    before = {path.parent.name: path.stat().st_mtime_ns for path in lab.glob("out/jobs/*/done")}
    assert before and not (lab / "out" / "comparison_summary.json").exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = {path.parent.name: path.stat().st_mtime_ns for path in lab.glob("out/jobs/*/done")}
    assert before.items() <= after.items() and len(after) == 10
    assert "MISSING" not in done.stdout and "plain: parameters" in done.stdout
    summary = read_json(lab / "out" / "comparison_summary.json")
    assert [len(arm["runs"]) for arm in summary["arms"]] == [2] * 5
    # Same seed, same validation set; equal parts of the config give equal first losses.
    starts = {
        arm["name"]: [run["curves"]["loss_nats"][0] for run in arm["runs"]]
        for arm in summary["arms"]
    }
    assert starts["plain"] == starts["looped-same-time"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.stdout == done.stdout
    json.dumps(summary, allow_nan=False)
