"""`mixlab study` at the command line: what it prints of a study folder, and its mistakes."""

import json
import subprocess
import sys
import time

import pytest
from stub_study import InProcessExecutor, drive, start_stub, stub_design

from mixlab.cli.main import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working folder with the finished study `stub`."""
    place = tmp_path_factory.mktemp("work")
    folder = place / "studies" / "stub"
    start_stub(folder, stub_design(arms=3, n_seeds=2, tune=None))
    drive(folder, InProcessExecutor(folder))
    return place


def mixlab(*words, monkeypatch):
    """The exit status of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["mixlab", *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_status_by_name_and_by_folder(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert mixlab("study", "status", "stub", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert text.startswith("stub: finished, ") and "a bug that comes back" in text
    assert mixlab("study", "status", "studies/stub", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == text


def test_status_needs_no_torch(finished):
    code = (
        "import sys; sys.argv = ['mixlab', 'study', 'status', 'stub']\n"
        "from mixlab.cli.main import main\nmain()\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_study_that_goes_on_is_told_with_its_runs(tmp_path, monkeypatch, capsys):
    """A job that somebody holds is shown with what it does."""
    from mixlab.studies.job_store import JobStore
    from mixlab.studies.lease import Observer
    from mixlab.studies.rounds import Rounds
    from mixlab.studies.worker import JobScreen

    design = stub_design(arms=1, n_seeds=2, tune=None)
    start_stub(tmp_path, design)
    store, entries = JobStore(tmp_path), Rounds(design).entries({})
    for entry in entries:
        store.add(entry.job)
    claim = store.claim([entries[0].address], Observer())
    row = {"step": 3, "loss_nats": 5.0, "lr": 0.1, "grad_norm": 1.0}
    JobScreen(claim, lambda: False, clock=time.monotonic).training(row, 12, 4.0)
    assert mixlab("study", "status", tmp_path, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "stopped, 0 of 2 runs, 1 running" in text and "base, seed 1: step 3/12" in text
    assert "Go on with: mixlab study run stub" in text
    claim.lease.release()


@pytest.mark.parametrize(
    "words, told",
    [
        (["study", "status", "stob"], "has not been started here"),
        (["study", "report", "nothing"], "The studies here are stub."),
        (["study", "worker", "nothing"], "is not a study folder"),
        (["study", "promote", "stub", "bse", "x"], "Did you mean 'base'?"),
        (["study", "promote", "stub", "buggy", "x"], "there is nothing to promote"),
        (["study", "promote", "stub", "base", "a b"], "expected letters, digits"),
        (["study", "run", "hybrid-paterns"], "Did you mean 'hybrid-patterns'?"),
    ],
)
def test_mistakes_are_one_paragraph(finished, monkeypatch, capsys, words, told):
    monkeypatch.chdir(finished)
    assert mixlab(*words, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("mixlab study: ") and told in said and "Traceback" not in said


def test_results_are_rewritten_by_a_report(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    path = finished / "studies" / "stub" / "results.json"
    before = path.read_text()
    path.write_text("{}")
    page = finished / "report.html"
    monkeypatch.setattr("mixlab.report.study.write_study_report", lambda folder: page)
    assert mixlab("study", "report", "stub", monkeypatch=monkeypatch) == 0
    assert path.read_text() == before and json.loads(before)["is_complete"]
    assert "report.html" in capsys.readouterr().out
