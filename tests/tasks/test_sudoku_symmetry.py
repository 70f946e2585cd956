"""Canonical forms of Sudoku: unchanged by every symmetry, different for everything else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.tasks import SudokuDug
from mixlab.tasks.sudoku.boxes import boxes
from mixlab.tasks.sudoku.symmetry import canonical_forms

SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
PUZZLES = {
    4: SudokuDug(size=4, blanks=(4, 12)),
    6: SudokuDug(size=6, blanks=(6, 24)),
    9: SudokuDug(size=9, blanks=(10, 50)),
}


def digits(task: SudokuDug, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    example = task.example(seed, index)
    return task.digits(example.question), task.digits(example.answer)


def line_order(rng: np.random.Generator, side: int, group: int) -> np.ndarray:
    """Groups in random order, and lines in random order inside each."""
    groups = rng.permutation(side // group)
    return np.concatenate([g * group + rng.permutation(group) for g in groups])


def moved(grids: list[np.ndarray], side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A random symmetry written out plainly, apart from the package's own."""
    h, w = SHAPES[side]
    rows, cols = line_order(rng, side, h), line_order(rng, side, w)
    names = np.concatenate([[0], rng.permutation(side) + 1])
    flip = h == w and rng.random() < 0.5
    out = []
    for grid in grids:
        square = names[grid.reshape(side, side)[rows][:, cols]]
        out.append((square.T if flip else square).ravel())
    return out


def all_images(solution: np.ndarray, mask: np.ndarray, side: int) -> set[bytes]:
    """Every image of a puzzle, digits renamed by first appearance in the solution."""
    h, w = SHAPES[side]

    def orders(group: int) -> list[list[int]]:
        lines = [range(g, g + group) for g in range(0, side, group)]
        return [
            [line for part in choice for line in part]
            for groups in itertools.permutations(lines)
            for choice in itertools.product(*(itertools.permutations(g) for g in groups))
        ]

    found = set()
    turned = [False, True] if h == w else [False]
    for rows, cols, flip in itertools.product(orders(h), orders(w), turned):
        s, m = (
            g.reshape(side, side)[rows][:, cols].T if flip else g.reshape(side, side)[rows][:, cols]
            for g in (solution, mask)
        )
        names = np.empty(side + 1, np.uint8)
        names[s[0]] = np.arange(1, side + 1)
        found.add((names[s] * m).astype(np.uint8).tobytes())
    return found


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([4, 6, 9]), seed=st.integers(0, 2**32))
def test_no_symmetry_changes_the_form(size: int, seed: int) -> None:
    puzzle, solution = digits(PUZZLES[size], seed, 0)
    image, image_solution = moved([puzzle, solution], size, np.random.default_rng(seed))
    forms = canonical_forms(
        boxes(size), np.stack([puzzle, image]), np.stack([solution, image_solution])
    )
    assert np.array_equal(forms[0], forms[1])


@pytest.mark.parametrize(("size", "n"), [(4, 40), (6, 5)])
def test_the_form_is_an_image_of_the_puzzle_and_tells_orbits_apart(size: int, n: int) -> None:
    """The form lies in the puzzle's own orbit, listed in full: so equal forms mean equivalence."""
    pairs = [digits(PUZZLES[size], 1, index) for index in range(n)]
    forms = canonical_forms(
        boxes(size), np.stack([p for p, _ in pairs]), np.stack([s for _, s in pairs])
    )
    for (puzzle, solution), form in zip(pairs, forms, strict=True):
        assert form.tobytes() in all_images(solution, puzzle > 0, size)


def test_one_blank_more_is_another_puzzle() -> None:
    puzzle, solution = digits(PUZZLES[9], 3, 0)
    changed = np.stack([puzzle] * 10)
    for row, cell in enumerate(np.flatnonzero(puzzle)[:9]):
        changed[row, cell] = 0
    forms = canonical_forms(boxes(9), changed, np.stack([solution] * 10))
    assert len({form.tobytes() for form in forms}) == 10


def test_all_4x4_grids_fall_into_the_two_known_classes() -> None:
    task = PUZZLES[4]
    grids = {task.example(0, index).answer.tobytes() for index in range(3500)}
    assert len(grids) == 288
    full = task.digits(np.stack([np.frombuffer(grid, np.uint8) for grid in sorted(grids)]))
    forms = canonical_forms(boxes(4), full, full)
    assert len({form.tobytes() for form in forms}) == 2


def test_6x6_grids_fall_into_the_49_known_classes() -> None:
    """49 is the published number of essentially different 2x3 grids; rare ones may not come up."""
    task = PUZZLES[6]
    full = task.digits(np.stack([task.example(0, index).answer for index in range(200)]))
    forms = canonical_forms(boxes(6), full, full)
    assert 27 <= len({form.tobytes() for form in forms}) <= 49


def test_the_most_symmetric_9x9_grid_is_no_trap() -> None:
    """A cyclic grid has hundreds of automorphisms, and no blanks to break them."""
    grid = np.array([[(3 * r + r // 3 + c) % 9 + 1 for c in range(9)] for r in range(9)]).ravel()
    rng = np.random.default_rng(0)
    (image,) = moved([grid], 9, rng)
    forms = canonical_forms(boxes(9), np.stack([grid, image]), np.stack([grid, image]))
    assert np.array_equal(forms[0], forms[1])


@pytest.mark.parametrize("size", [4, 6, 9])
def test_augmentation_is_a_function_of_the_row_and_its_index(size: int) -> None:
    task = PUZZLES[size]
    examples = [task.example(0, index) for index in range(12)]
    q, a = (np.stack([e[i] for e in examples]) for i in (0, 1))
    indices = np.arange(100, 112)
    moved_q, moved_a = task.augment(q, a, 7, indices)
    order = np.array([5, 0, 11])
    again_q, again_a = task.augment(q[order], a[order], 7, indices[order])
    assert np.array_equal(again_q, moved_q[order]) and np.array_equal(again_a, moved_a[order])
    assert not np.array_equal(moved_q, q)
    assert not np.array_equal(task.augment(q, a, 7, indices + 12)[0], moved_q)
    assert not np.array_equal(task.augment(q, a, 8, indices)[0], moved_q)
    assert task.keys(moved_q, moved_a) == task.keys(q, a)
