"""Sudoku puzzles with one solution: a random full grid, then givens dug out one by one.

A given may go when its digit is forced by what stays: at once if a naked or hidden single shows it,
else if a search finds no solution with another digit there. As each step keeps the solution unique,
so is the last one, and a puzzle dug by singles alone can be solved by singles, in reverse order.
"""

import random
from typing import Literal, NamedTuple

from mixlab.tasks.sudoku.boxes import Boxes
from mixlab.tasks.sudoku.solver import Search, SearchLimit, to_digits

Grade = Literal["any", "naked", "singles", "search"]

MAX_BRANCHES = 2000
"""Of one uniqueness search; where that is not enough the given stays."""


class Dug(NamedTuple):
    """A puzzle as digits, 0 where it is blank."""

    puzzle: list[int]
    solution: list[int]


def full_grid(boxes: Boxes, rng: random.Random) -> list[int]:
    """A random solved grid. All grids can come up; they are not exactly equally likely."""
    while True:
        may, unsolved = [boxes.full] * boxes.size, boxes.full
        # The first row in random order decides the names of the digits, the search does the rest.
        first = list(range(boxes.size))
        rng.shuffle(first)
        for cell, d in enumerate(first):
            bit = 1 << cell
            may = [cells & ~bit for cells in may]
            may[d] = (may[d] | bit) & boxes.keep[cell]
            unsolved &= ~bit
        try:
            search = Search(boxes, limit=1, max_branches=200, rng=rng, hidden=False).run(
                may, unsolved
            )
        except SearchLimit:  # a rare unlucky start; another one is cheaper than going on
            continue
        return to_digits(boxes, search.solutions[0])


def dig(boxes: Boxes, solution: list[int], n_blanks: int, grade: Grade, rng: random.Random) -> Dug:
    """Blank out cells in random order until `n_blanks` are, or none can go any more.

    `grade` "naked" and "singles" only use steps that such singles can undo.
    """
    digger = _Digger(boxes, solution, grade)
    order = list(range(boxes.n_cells))
    rng.shuffle(order)
    for cell in order:
        if len(digger.blanks) == n_blanks:
            break
        digger.try_blank(cell)
    puzzle = list(solution)
    for cell in digger.blanks:
        puzzle[cell] = 0
    return Dug(puzzle, solution)


class _Digger:
    """The givens that are left, per digit, with what they rule out."""

    def __init__(self, boxes: Boxes, solution: list[int], grade: Grade) -> None:
        self.boxes, self.solution, self.grade = boxes, solution, grade
        self.blanks: list[int] = []
        self.blank_cells = 0
        self.at = [0] * boxes.size  # givens of each digit
        for cell, digit in enumerate(solution):
            self.at[digit - 1] |= 1 << cell
        self.reach = [self._reach(cells) for cells in self.at]  # where more of it may stand

    def _reach(self, cells: int) -> int:
        reach = self.boxes.full
        while cells:
            bit = cells & -cells
            reach &= self.boxes.keep[bit.bit_length() - 1]
            cells ^= bit
        return reach

    def try_blank(self, cell: int) -> None:
        d, bit = self.solution[cell] - 1, 1 << cell
        at = self.at[d] & ~bit
        reach = self._reach(at)
        if self._is_forced(cell, d, at, reach):
            self.at[d], self.reach[d] = at, reach
            self.blank_cells |= bit
            self.blanks.append(cell)

    def _is_forced(self, cell: int, d: int, at: int, reach: int) -> bool:
        bit = 1 << cell
        others = [e for e in range(self.boxes.size) if e != d and self.reach[e] & bit]
        if not others:
            return True  # naked single
        if self.grade == "naked":
            return False
        places = reach & (self.blank_cells | bit)
        if any(places & unit == bit for unit in self.boxes.units_of[cell]):
            return True  # hidden single
        if self.grade == "singles":
            return False
        return self._is_forced_by_search(cell, d, at, reach)

    def _is_forced_by_search(self, cell: int, d: int, at: int, reach: int) -> bool:
        """Whether no solution has another digit in `cell`."""
        unsolved = self.blank_cells | 1 << cell
        may = [r & (unsolved | a) for r, a in zip(self.reach, self.at, strict=True)]
        may[d] = reach & (self.blank_cells | at)
        try:
            search = Search(self.boxes, limit=1, max_branches=MAX_BRANCHES).run(may, unsolved)
        except SearchLimit:
            return False
        return not search.solutions
