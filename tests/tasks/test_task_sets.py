"""Sets of examples: repeatable, without repeats, disjoint up to symmetry, and honest manifests."""

from pathlib import Path

import numpy as np
import pytest

from mixlab.core.errors import DataError
from mixlab.tasks import Arc1D, Maze, ReasoningGym, SudokuDug
from mixlab.tasks.base import Task
from mixlab.tasks.sets import TaskSet, build_set, prove_disjoint
from mixlab.tasks.splits import SPLITS, TEST_FRAC, VALIDATION_FRAC, split_of

TASKS = [
    SudokuDug(size=4, blanks=(8, 12)),
    SudokuDug(size=6, blanks=(16, 22)),
    SudokuDug(size=9, blanks=(20, 36)),
    Maze(size=6, min_path=5),
    Arc1D(width=8, n_demos=2),
    ReasoningGym(task="gcd", options={"max_value": 60}),
]


@pytest.fixture(params=TASKS, ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def test_splits_are_disjoint_up_to_symmetry(task: Task) -> None:
    """Different seeds and sizes; and the same seed, which draws the same candidates."""
    sets = {
        split: build_set(task, split, n, seed)
        for split, n, seed in (("train", 120, 0), ("validation", 15, 0), ("test", 30, 9))
    }
    for a in SPLITS:
        for b in SPLITS:
            if a < b:
                counts = prove_disjoint(task, sets[a], sets[b])
                assert counts["n_a"] == len(sets[a]) and counts["n_b"] == len(sets[b])
    train = sets["train"]
    assert len({row.tobytes() for row in train.inputs}) == 120
    assert task.check_many(train.inputs, train.labels, train.labels).valid.all()
    assert np.array_equal(train.given, task.given(train.inputs))


def test_a_symmetric_image_in_the_other_set_is_found(task: Task) -> None:
    """The proof works from the arrays, so a leak is found however it came about."""
    train, test = build_set(task, "train", 20, 0), build_set(task, "test", 10, 0)
    moved = task.augment(train.inputs[7:8], train.labels[7:8], 3, np.array([1]))
    if task.length == 16:  # on 4x4 it is the solution grid that must not be shared
        moved = (train.inputs[7:8], train.labels[7:8])
    inputs, labels = test.inputs.copy(), test.labels.copy()
    inputs[4], labels[4] = moved[0][0], moved[1][0]
    leaky = TaskSet(inputs, labels, task.given(inputs), test.manifest)
    with pytest.raises(DataError, match=r"example \d+ of 'train' and example 4 of 'test'"):
        prove_disjoint(task, train, leaky)


def test_4x4_solution_grids_are_not_shared() -> None:
    task = TASKS[0]
    train, test = build_set(task, "train", 1500, 0), build_set(task, "test", 400, 0)
    grids, test_grids = ({row.tobytes() for row in s.labels} for s in (train, test))
    assert not grids & test_grids
    # Augmentation visits further grids, and still none of the other split.
    moved = task.augment(train.inputs, train.labels, 0, np.arange(1500))[1]
    assert not {row.tobytes() for row in moved} & test_grids
    assert len(grids | test_grids) <= 288


def test_a_set_is_a_function_of_its_arguments(task: Task) -> None:
    first, again = build_set(task, "test", 12, 4), build_set(task, "test", 12, 4)
    assert np.array_equal(first.inputs, again.inputs) and first.manifest == again.manifest
    # A smaller set is the beginning of a larger one: chunks have no part in it.
    assert np.array_equal(build_set(task, "test", 5, 4).inputs, first.inputs[:5])
    other = build_set(task, "test", 12, 5)
    assert other.manifest["content_hash"] != first.manifest["content_hash"]


def test_manifest(task: Task) -> None:
    told: list[int] = []
    made = build_set(task, "train", 25, 2, advance=told.append)
    manifest = made.manifest
    assert sum(told) == manifest["n"] == len(made) == 25
    assert (manifest["split"], manifest["seed"], manifest["name"]) == ("train", 2, task.name)
    assert manifest["generator_version"] == task.generator_version
    assert manifest["difficulty"]
    for histogram in manifest["difficulty"].values():
        assert sum(histogram.values()) == 25
    left_out = manifest["n_of_other_splits"] + manifest["n_repeats_left_out"]
    assert manifest["n_candidates"] == 25 + left_out


def test_difficulty_histogram_counts_blanks() -> None:
    made = build_set(SudokuDug(size=6, blanks=(16, 18)), "train", 60, 0)
    n_blanks = (~made.given).sum(axis=1)
    expected = {str(n): int((n_blanks == n).sum()) for n in (16, 17, 18)}
    assert made.manifest["difficulty"]["blanks"] == expected


def test_split_fractions() -> None:
    """20,000 keys: the binomial error is 0.003, four times that is a fault."""
    homes = [split_of(b"%d" % i) for i in range(20_000)]
    assert homes.count("test") / 20_000 == pytest.approx(TEST_FRAC, abs=0.012)
    assert homes.count("validation") / 20_000 == pytest.approx(VALIDATION_FRAC, abs=0.012)


def test_saved_sets_come_back_and_altered_ones_do_not(tmp_path: Path) -> None:
    task = TASKS[1]
    made = build_set(task, "test", 6, 0)
    path = made.save(tmp_path / "sets" / "six.npz")
    read = TaskSet.load(path, task)
    assert np.array_equal(read.labels, made.labels) and read.manifest == made.manifest
    with pytest.raises(DataError, match="made with other settings than sudoku-dug-6x6-16-20"):
        TaskSet.load(path, SudokuDug(size=6, blanks=(16, 20)))
    labels = made.labels.copy()
    labels[0, 0] ^= 1
    altered = TaskSet(made.inputs, labels, made.given, made.manifest).save(path)
    with pytest.raises(DataError, match="was altered"):
        TaskSet.load(altered, task)
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="is not a readable set"):
        TaskSet.load(path, task)


def test_more_than_there_is_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixlab.tasks.sets._MAX_BARREN", 200)
    task = SudokuDug(size=4, blanks=(1, 1))
    with pytest.raises(DataError, match=r"only \d+ different examples in the split 'validation'"):
        build_set(task, "validation", 2000, 0)
    with pytest.raises(DataError, match="split = 'dev': expected one of train, validation, test"):
        build_set(task, "dev", 1, 0)
    with pytest.raises(DataError, match="expected at least 1"):
        build_set(task, "train", 0, 0)
