"""results.json: what it says of tuning, screening, pairing, and runs that are missing."""

import json
from pathlib import Path

import pytest
from stub_study import InProcessExecutor, drive, loss_of, start_stub, stub_design

from mixlab.core.errors import LabError
from mixlab.core.json_files import write_json
from mixlab.studies.results import collect, read_design
from mixlab.studies.rounds import Rounds
from mixlab.studies.watch import describe_status


def finished(folder: Path, design) -> dict:
    start_stub(folder, design)
    drive(folder, InProcessExecutor(folder))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two arms, tuned, two seeds: (folder, results)."""
    folder = tmp_path_factory.mktemp("tuned")
    return folder, finished(folder, stub_design(arms=3, n_seeds=2))


def test_values_are_those_of_the_configs(tuned):
    folder, results = tuned
    arm = next(arm for arm in results["arms"] if arm["name"] == "low")
    assert arm["lr"] == 0.00025 and set(arm["values"]) == {"1", "2"}
    for seed, value in arm["values"].items():
        config = json.loads((folder / "jobs" / arm["jobs"][seed] / "job.json").read_text())
        assert config["config"]["seed"] == int(seed)
        assert config["config"]["train"]["optimizer"]["lr"] == 0.00025
        assert value == loss_of(config["config"])


def test_tuning_runs_with_a_seed_that_ranks_nothing_and_is_counted(tuned):
    _, results = tuned
    arm = next(arm for arm in results["arms"] if arm["name"] == "low")
    points = arm["tuning"]["points"]
    assert arm["tuning"]["status"] == "interior" and arm["tuning"]["seeds"] == [3]
    lrs = [point["lr"] for point in points]
    assert lrs == sorted(lrs) and min(lrs) < 0.00025 < max(lrs)
    assert arm["tuning"]["cost"]["runs"] == len(points)
    assert arm["tuning"]["cost"]["tokens"] == 96 * len(points)
    jobs = results["jobs"].values()
    assert {job["seed"] for job in jobs if job["purposes"] == ["tuning"]} == {3}
    assert {job["seed"] for job in jobs if job["purposes"] == ["seed"]} == {1, 2}
    assert results["cost"]["tuning"]["runs"] + 2 * 3 == results["cost"]["runs"] == len(jobs)


def test_the_realised_quantities_stand_beside_the_planned(tuned):
    _, results = tuned
    assert results["match"]["realised"]["tokens"] == {
        "least": 96, "most": 96, "spread": 0.0, "is_within": True,
    }  # fmt: skip
    assert results["arms"][0]["realised"]["steps"] == 12
    assert results["paired"] == {"is_paired": True, "reason": ""}


def test_collecting_twice_gives_the_same(tuned):
    folder, results = tuned
    assert collect(folder) == results


def test_status_is_read_without_torch(tuned):
    folder, _ = tuned
    text = describe_status(folder)
    assert text.startswith("stub: finished, ") and "low" in text and "(tuned)" in text
    assert "Matched: tokens 96 to 96 (0.00% apart)." in text


def test_an_arm_whose_best_rate_is_at_the_edge_is_not_ranked(tmp_path):
    design = stub_design(arms=3, n_seeds=1, tune={"seeds": [2], "max_runs": 4})
    for arm in design["arms"]:
        if arm["name"] == "low":
            arm["lr"] = arm["config"]["train"]["optimizer"]["lr"] = 0.064  # 8 octaves too high
    results = finished(tmp_path, design)
    arm = next(arm for arm in results["arms"] if arm["name"] == "low")
    assert arm["tuning"]["status"] == "edge" and len(arm["tuning"]["points"]) == 4
    assert not arm["is_ranked"] and "edge" in arm["why_not"]
    assert arm["status"] == "done" and arm["values"], "its figures are there to be seen"


def test_screening_drops_the_worse_half_and_says_so(tmp_path):
    design = stub_design(arms=5, n_seeds=3, tune=None, screen={"rungs": [1, 3]})
    design["arms"] = [arm for arm in design["arms"] if arm["name"] != "buggy"]
    results = finished(tmp_path, design)
    by_name = {arm["name"]: arm for arm in results["arms"]}
    # Untuned, `low` is 2 octaves off, `high` 1.6, `equal` none; the baseline always stays.
    assert by_name["low"]["status"] == "screened out"
    assert by_name["low"]["screened_out_after"] == 1 and len(by_name["low"]["values"]) == 1
    assert not by_name["low"]["is_ranked"]
    for name in ("base", "equal", "high"):
        assert len(by_name[name]["values"]) == 3 and by_name[name]["is_ranked"]
    first, last = results["screen"]["history"]
    assert first["dropped"] == ["low"] and last["is_finished"]
    assert len(results["jobs"]) == 4 + 3 * 2


def test_other_text_under_the_same_seed_is_noticed(tmp_path):
    design = stub_design(arms=3, n_seeds=2, tune=None)
    design["arms"] = design["arms"][:2]
    results = finished(tmp_path, design)
    address = results["arms"][1]["jobs"]["2"]
    path = tmp_path / "jobs" / address / "done" / "result.json"
    write_json(path, {**json.loads(path.read_text()), "order": "another"})
    paired = collect(tmp_path)["paired"]
    assert not paired["is_paired"] and "seed 2" in paired["reason"] and "'low'" in paired["reason"]


def test_unfinished_studies_say_what_is_missing(tmp_path):
    design = stub_design(arms=3, n_seeds=2)
    start_stub(tmp_path, design)
    results = collect(tmp_path)
    assert not results["is_complete"]
    assert {arm["status"] for arm in results["arms"]} == {"unfinished"}
    assert {job["status"] for job in results["jobs"].values()} == {"waiting"}
    assert results["match"]["realised"] == {}
    assert Rounds(design).n_expected({}) == 3 * (5 + 2)
    assert "stopped, 0 of 21 runs" in describe_status(tmp_path)


def test_the_baseline_goes_first():
    """Its seeds are the noise floor that a report opens with."""
    entries = Rounds(stub_design(arms=3, n_seeds=2, baseline="low", tune=None)).entries({})
    assert [(e.arm, e.seed) for e in entries[:3]] == [("low", 1), ("low", 2), ("base", 1)]


def test_no_study_and_a_damaged_one(tmp_path):
    with pytest.raises(LabError, match="is not a study folder"):
        read_design(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(LabError, match="damaged"):
        read_design(tmp_path)
    write_json(tmp_path / "study.json", {"format": 99})
    with pytest.raises(LabError, match="expected format 1"):
        read_design(tmp_path)
    write_json(tmp_path / "study.json", {"format": 1, "name": "x"})
    with pytest.raises(LabError, match=r"damaged: it lacks about, .* Run the study again"):
        read_design(tmp_path)


@pytest.mark.parametrize("left", [{}, {"summary": 3}])
def test_a_damaged_result_names_its_folder(tmp_path, left):
    results = finished(tmp_path, stub_design(arms=2, n_seeds=2, tune=None))
    address = results["arms"][1]["jobs"]["2"]
    write_json(tmp_path / "jobs" / address / "done" / "result.json", left)
    with pytest.raises(LabError, match=rf"{address}: what the run left is damaged .* Delete that"):
        collect(tmp_path)
