"""Sudoku solver, generator and checker, held against a SAT solver and against hand cases."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sat_sudoku import sat_solutions

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.tasks import SudokuDug
from mixlab.tasks.sudoku.boxes import boxes
from mixlab.tasks.sudoku.generator import dig, full_grid
from mixlab.tasks.sudoku.solver import effort, position, propagate, solutions

TASKS_BY_SIZE = [
    SudokuDug(size=4, blanks=(8, 12)),
    SudokuDug(size=6, blanks=(16, 24)),
    SudokuDug(size=9, blanks=(20, 36)),
    SudokuDug(size=9, blanks=(50, 54)),
]

# A classic newspaper example and its solution.
CLASSIC = (
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
    "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
)


def numbers(text: str) -> list[int]:
    return [int(char) for char in text.replace(".", "0")]


@pytest.mark.parametrize("task", TASKS_BY_SIZE, ids=lambda task: task.name)
def test_every_puzzle_has_the_one_solution_that_is_stored(task: SudokuDug) -> None:
    for index in range(8):
        example = task.example(11, index)
        puzzle = task.digits(example.question).tolist()
        assert sat_solutions(task.side, puzzle) == [task.digits(example.answer).tolist()]
        assert task.blanks[0] <= puzzle.count(0) <= task.blanks[1]
        assert example.meta["difficulty"]["blanks"] == puzzle.count(0)


@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([4, 6, 9]), seed=st.integers(0, 2**32), n_more=st.integers(1, 8))
def test_solver_counts_as_a_sat_solver_does(size: int, seed: int, n_more: int) -> None:
    """Puzzles with none, one or several solutions: dug as far as it goes, then damaged."""
    board, rng = boxes(size), random.Random(seed)
    puzzle = dig(board, full_grid(board, rng), board.n_cells, "any", rng).puzzle
    for cell in rng.sample(range(board.n_cells), n_more):
        puzzle[cell] = rng.choice([0, 0, rng.randint(1, size)])
    ours, theirs = solutions(board, puzzle), sat_solutions(size, puzzle)
    assert len(ours) == len(theirs)
    if len(ours) == 1:
        assert ours == theirs


def test_classic_puzzle() -> None:
    task = SudokuDug(size=9, blanks=(20, 36))
    question = task.parse_answer(None, "\n".join(CLASSIC[0][i : i + 9] for i in range(0, 81, 9)))
    assert task.digits(task.solve(question)).tolist() == numbers(CLASSIC[1])
    assert effort(boxes(9), numbers(CLASSIC[0])).n_branches == 0


@pytest.mark.parametrize("grade", ["naked", "singles"])
def test_a_grade_by_singles_needs_no_search(grade: str) -> None:
    task = SudokuDug(size=9, blanks=(40, 44), grade=grade)
    for index in range(5):
        puzzle = task.digits(task.example(2, index).question).tolist()
        may, unsolved = position(boxes(9), puzzle)
        assert propagate(boxes(9), may, unsolved, hidden=grade == "singles") == 0


def test_the_grade_search_is_beyond_singles() -> None:
    task = SudokuDug(size=9, blanks=(52, 54), grade="search")
    for index in range(3):
        example = task.example(2, index)
        may, unsolved = position(boxes(9), task.digits(example.question).tolist())
        assert propagate(boxes(9), may, unsolved) > 0
        assert example.meta["n_branches"] > 0


def test_a_seed_gives_the_same_puzzles_for_ever() -> None:
    """If this hash changes, raise `generator_version`: old seeds stand for other puzzles now."""
    content = hashlib.blake2b(digest_size=8)
    for task in TASKS_BY_SIZE:
        for index in range(4):
            content.update(task.example(5, index).question.tobytes())
    assert (SudokuDug.generator_version, content.hexdigest()) == (1, "828506f42a0d21cf")


def test_rules_accept_exactly_the_solutions() -> None:
    task = SudokuDug(size=6)
    example = task.example(0, 0)
    assert task.check(example.question, example.answer) == (True, True)
    # Two cells of one row exchanged: rows stay right, columns do not.
    swapped = example.answer.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    # Rows exchanged inside a band obey the rules, but not the givens.
    moved = example.answer.reshape(6, 6)[[1, 0, 2, 3, 4, 5]].ravel()
    assert task.obeys_rules(np.stack([example.answer, swapped, moved])).tolist() == [
        True,
        False,
        True,
    ]
    for wrong in (swapped, moved, example.question, np.zeros(36, np.uint8)):
        assert task.check(example.question, wrong) == (False, False)


def test_several_solutions_are_valid_but_one_is_stored() -> None:
    task = SudokuDug(size=4, blanks=(8, 12))
    question = np.ones(16, np.uint8)
    grid = task.example(0, 0).answer
    other = task.example(0, 1).answer
    assert not np.array_equal(grid, other)
    assert task.check(question, other, expected=grid) == (False, True)
    with pytest.raises(DataError, match="more than one solution"):
        task.check(question, other)


def test_an_unsolvable_puzzle_is_named() -> None:
    task = SudokuDug(size=4, blanks=(8, 12))
    question = np.ones(16, np.uint8)
    question[[0, 1]] = 2
    with pytest.raises(DataError, match=r"4x4 Sudoku 11\.{14} has no solution"):
        task.solve(question)


def test_a_difficulty_out_of_reach_ends_after_a_bounded_number_of_tries() -> None:
    with pytest.raises(DataError, match=r"in 3 tries.*most blanks reached was \d+. Lower blanks"):
        SudokuDug(size=9, blanks=(64, 64), max_tries=3).example(0, 0)
    with pytest.raises(DataError, match="singles solved every puzzle"):
        SudokuDug(size=4, blanks=(1, 1), grade="search", max_tries=3).example(0, 0)


@pytest.mark.parametrize("blanks", [[0, 4], [9, 8], [20, 65]])
def test_impossible_ranges_of_blanks_are_refused(blanks: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"blanks = .*two rising numbers from 1 to 64"):
        decode(SudokuDug, {"size": 9, "blanks": blanks})
