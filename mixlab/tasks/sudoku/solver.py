"""A Sudoku solver on sets of bits: one int of cells per digit, singles first, then bounded search.

A position is a list with, for each digit, the cells where it may still stand. All naked singles of
the grid are found at once: going through the digits, `once` collects the cells that any digit may
take and `twice` those that two may; what is in `once` only is single.

Cost: a 9x9 puzzle that singles solve takes about a quarter of a millisecond.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from mixlab.tasks.sudoku.boxes import Boxes

DEAD = -1
"""What `propagate` returns for a position without a solution."""

MAX_BRANCHES = 100_000
"""Of one search. Puzzles with one solution take hundreds at most; this is some seconds."""


class SearchLimit(Exception):  # noqa: N818 (it is a limit that was reached)
    """The search used up its nodes before it was finished."""


class Effort(NamedTuple):
    """What solving a puzzle with one solution took."""

    grade: str  # "naked" or "hidden": such singles suffice; "search": they do not
    n_branches: int  # choices that the search tried, over its whole tree


def position(boxes: Boxes, digits: Sequence[int]) -> tuple[list[int], int]:
    """Candidates per digit and the unsolved cells, from cells holding 0 (blank) or 1..size.

    Two equal givens in one unit leave a digit without its cell, so that `propagate` sees it.
    """
    at = [0] * boxes.size
    reach = [boxes.full] * boxes.size
    unsolved = 0
    for cell, digit in enumerate(digits):
        if digit:
            at[digit - 1] |= 1 << cell
            reach[digit - 1] &= boxes.keep[cell]
        else:
            unsolved |= 1 << cell
    return [reach[d] & (unsolved | at[d]) for d in range(boxes.size)], unsolved


def propagate(boxes: Boxes, may: list[int], unsolved: int, hidden: bool = True) -> int:
    """Place naked singles, and if asked hidden ones, until there are no more; changes `may`.

    Returns the cells still unsolved, or DEAD on a contradiction.
    """
    keep, size = boxes.keep, boxes.size
    while True:
        once = twice = 0
        for cells in may:
            twice |= once & cells
            once |= cells
        if once != boxes.full:
            return DEAD
        if not unsolved:
            return 0
        singles = unsolved & ~twice
        if singles:
            for d in range(size):
                rest = singles & may[d]
                while rest:
                    bit = rest & -rest
                    if not may[d] & bit:  # an equal single in the same unit took it
                        return DEAD
                    may[d] &= keep[bit.bit_length() - 1]
                    rest ^= bit
            unsolved &= ~singles
            continue
        placed = _place_hidden(boxes, may, unsolved) if hidden else 0
        if placed == DEAD:
            return DEAD
        if not placed:
            return unsolved
        unsolved &= ~placed


def _place_hidden(boxes: Boxes, may: list[int], unsolved: int) -> int:
    """Place digits that have one cell left in some unit; the cells placed, or DEAD."""
    placed = 0
    for d in range(boxes.size):
        for unit in boxes.units:
            cells = may[d] & unit
            if cells & (cells - 1):
                continue
            if not cells:
                return DEAD
            if cells & unsolved & ~placed:
                for other in range(boxes.size):
                    may[other] &= ~cells
                may[d] = (may[d] | cells) & boxes.keep[cells.bit_length() - 1]
                placed |= cells
    return placed


class Search:
    """Depth-first search from a position; collects up to `limit` solutions.

    With `rng` the digits of a cell are tried in random order, otherwise in rising order. Without
    `hidden` only naked singles prune: quicker where solutions are many, as in an empty grid.

    Raises:
        SearchLimit: more than `max_branches` choices were tried.
    """

    def __init__(
        self,
        boxes: Boxes,
        limit: int = 2,
        max_branches: int = MAX_BRANCHES,
        rng: random.Random | None = None,
        hidden: bool = True,
    ) -> None:
        self.boxes, self.limit, self.max_branches, self.rng = boxes, limit, max_branches, rng
        self.hidden = hidden
        self.solutions: list[list[int]] = []  # candidates per digit: one cell set each
        self.n_branches = 0

    def run(self, may: list[int], unsolved: int) -> "Search":
        """Search below a position; `may` is used up."""
        unsolved = propagate(self.boxes, may, unsolved, self.hidden)
        if unsolved == DEAD:
            return self
        if not unsolved:
            self.solutions.append(may)
            return self
        cell = self._fewest_candidates(may, unsolved)
        digits = [d for d, cells in enumerate(may) if cells & cell]
        if self.rng is not None:
            self.rng.shuffle(digits)
        for d in digits:
            self.n_branches += 1
            if self.n_branches > self.max_branches:
                raise SearchLimit
            below = [cells & ~cell for cells in may]
            below[d] = (below[d] | cell) & self.boxes.keep[cell.bit_length() - 1]
            self.run(below, unsolved & ~cell)
            if len(self.solutions) >= self.limit:
                return self
        return self

    def _fewest_candidates(self, may: list[int], unsolved: int) -> int:
        """The first cell with two candidates, else with three, else any; as a set of one."""
        once = twice = thrice = more = 0
        for cells in may:
            more |= thrice & cells
            thrice |= twice & cells
            twice |= once & cells
            once |= cells
        open_cells = twice & ~thrice & unsolved or thrice & ~more & unsolved or unsolved
        return open_cells & -open_cells


def solutions(boxes: Boxes, digits: Sequence[int], limit: int = 2) -> list[list[int]]:
    """Up to `limit` solutions of a puzzle (0 is blank), each as a list of digits."""
    found = Search(boxes, limit).run(*position(boxes, digits)).solutions
    return [to_digits(boxes, may) for may in found]


def effort(boxes: Boxes, digits: Sequence[int]) -> Effort:
    """Grade a puzzle that has exactly one solution."""
    may, unsolved = position(boxes, digits)
    if propagate(boxes, may, unsolved, hidden=False) == 0:
        return Effort("naked", 0)
    search = Search(boxes).run(*position(boxes, digits))
    return Effort("search" if search.n_branches else "hidden", search.n_branches)


def to_digits(boxes: Boxes, may: Sequence[int]) -> list[int]:
    """The digits 1..size of a solved position."""
    digits = [0] * boxes.n_cells
    for d, cells in enumerate(may):
        while cells:
            bit = cells & -cells
            digits[bit.bit_length() - 1] = d + 1
            cells ^= bit
    return digits
