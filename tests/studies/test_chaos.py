"""Drivers and workers killed with SIGKILL: no run is lost, none counts twice, no trace is left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import stub_study
from stub_study import N_JOBS, N_STEPS

from mixlab.core.json_files import read_lines
from mixlab.report.study import write_study_report

ROOT = Path(stub_study.__file__).parent


def script(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, stub_study.__file__, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "stub"
    script("undisturbed", folder)
    return folder


def check_runs(folder: Path) -> None:
    """Every run once, its lines in order, whoever wrote them."""
    results = json.loads((folder / "results.json").read_text())
    assert results["is_complete"] and len(results["jobs"]) == N_JOBS
    assert results["cost"]["failed"] == 2 and not results["set_aside"]
    jobs = sorted(path.name for path in (folder / "jobs").iterdir())
    assert jobs == sorted(results["jobs"])
    for address, job in results["jobs"].items():
        is_done = (folder / "jobs" / address / "done").is_dir()
        assert is_done == (job["status"] == "done")
        steps = [row["step"] for row in read_lines(folder / job["curves"]["metrics"])]
        assert steps == list(range(1, len(steps) + 1))
        n_wanted = {"bug": 6, "diverged": 4}.get((job["error"] or {}).get("kind"), N_STEPS)
        assert len(steps) == n_wanted
        assert not list((folder / "jobs" / address).glob("work-*"))


def same_results(a: Path, b: Path) -> None:
    assert (a / "results.json").read_bytes() == (b / "results.json").read_bytes()


def same_report(a: Path, b: Path) -> None:
    for folder in (a, b):
        write_study_report(folder)
    for name in ("report.html", "report.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_an_undisturbed_study_finds_each_optimum(undisturbed):
    check_runs(undisturbed)
    results = json.loads((undisturbed / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["arms"]}
    # On the grid of half octaves the point nearest to 3 is 2 sqrt 2.
    best = {"base": 1.0, "low": 0.25, "high": 2 * 2**0.5, "equal": 1.0}
    found = {name: arm["tuning"]["best_factor"] for name, arm in arms.items() if name in best}
    assert found == pytest.approx(best)
    assert arms["buggy"]["status"] == "failed" and not arms["buggy"]["is_ranked"]
    assert "a bug that comes back" in arms["buggy"]["why_not"]


def test_a_dozen_kills_leave_no_trace(undisturbed, tmp_path):
    counts = json.loads(script("chaos", tmp_path / "stub", 12, 3))
    # Which process a kill meets depends on the machine; 120 of them (below) meet both kinds.
    assert counts["status"] == 0 and counts["driver"] + counts["worker"] >= 6
    check_runs(tmp_path / "stub")
    same_results(undisturbed, tmp_path / "stub")


@pytest.mark.slow
def test_a_hundred_kills_leave_no_trace(undisturbed, tmp_path):
    counts = json.loads(script("chaos", tmp_path / "stub", 120, 1))
    assert counts["driver"] + counts["worker"] == 120 and counts["status"] == 0
    assert counts["driver"] >= 20 and counts["worker"] >= 20 and counts["looking_on"]
    assert counts["done_before_the_end"] > N_JOBS / 4, "the kills came all at the beginning"
    check_runs(tmp_path / "stub")
    same_results(undisturbed, tmp_path / "stub")
    same_report(undisturbed, tmp_path / "stub")


@pytest.mark.parametrize(
    "who, every",
    [
        ("worker", 11),
        pytest.param("worker", 1, marks=pytest.mark.slow),
        pytest.param("driver", 1, marks=pytest.mark.slow),
    ],
)
def test_death_at_any_file_operation_leaves_no_trace(tmp_path, who, every):
    found = json.loads(script("die", tmp_path, who, every))
    assert len(found) > 4, "it did not die at all"
    assert len(set(found)) == 1
