"""Sudoku puzzles that the lab makes itself: 4x4, 6x6 and 9x9, one solution each, graded.

They are dug out of random full grids (see generator.py), and none is as hard as the hardest half of
the public Sudoku-Extreme collection: results on the two are not comparable, hence the name.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mixlab.core.errors import DataError, Rule
from mixlab.tasks.base import Example
from mixlab.tasks.draws import generator
from mixlab.tasks.sudoku.boxes import MAX_BLANKS
from mixlab.tasks.sudoku.generator import Grade, dig, full_grid
from mixlab.tasks.sudoku.rules import FIRST_DIGIT, SudokuRules
from mixlab.tasks.sudoku.solver import Effort, effort


class SudokuDug(SudokuRules):
    """Puzzles of one size, with a number of blanks drawn evenly from a range."""

    kind: Literal["sudoku"] = "sudoku"
    generator_version: ClassVar[int] = 1

    size: Literal[4, 6, 9] = 6
    """Side of the grid. Boxes are 2x2, 2x3 (two rows, three columns) and 3x3."""
    blanks: tuple[int, int] = (16, 22)
    """Fewest and most blank cells."""
    grade: Grade = "any"
    """What solving must take. `naked`: naked singles suffice. `singles`: naked and hidden singles
    suffice. `search`: they do not. The manifest counts what `any` gave."""
    max_tries: int = Field(default=200, ge=1)
    """Grids that one example may use up before the difficulty counts as impossible."""

    def model_post_init(self, context: Any) -> None:
        low, high = self.blanks
        most = MAX_BLANKS[self.size]
        if not 1 <= low <= high <= most:
            raise Rule(
                "blanks",
                list(self.blanks),
                f"two rising numbers from 1 to {most}",
                f"With more blanks no {self.size}x{self.size} puzzle has one solution.",
            )

    @property
    def name(self) -> str:
        grade = "" if self.grade == "any" else f"-{self.grade}"
        return f"sudoku-dug-{self.size}x{self.size}-{self.blanks[0]}-{self.blanks[1]}{grade}"

    def example(self, seed: int, index: int) -> Example:
        rng = generator(f"{self.name} {self.generator_version}", seed, index)
        n_blanks = rng.randint(*self.blanks)
        most = 0
        for _ in range(self.max_tries):
            dug = dig(self.board, full_grid(self.board, rng), n_blanks, self.grade, rng)
            reached = dug.puzzle.count(0)
            most = max(most, reached)
            if reached < n_blanks:
                continue
            took = effort(self.board, dug.puzzle)
            if self.grade != "search" or took.grade == "search":
                return self._example(dug.puzzle, dug.solution, took)
        reason = (
            f"the most blanks reached was {most}"
            if most < n_blanks
            else "singles solved every puzzle that had them"
        )
        raise DataError(
            f"{self.name}: no puzzle with {n_blanks} blanks and grade {self.grade!r} in "
            f"{self.max_tries} tries (seed {seed}, example {index}): {reason}. "
            + ("Lower blanks." if most < n_blanks else "Raise blanks, or use another grade.")
        )

    def _example(self, puzzle: list[int], solution: list[int], took: Effort) -> Example:
        question = np.array(puzzle, np.uint8) + np.uint8(FIRST_DIGIT - 1)
        answer = np.array(solution, np.uint8) + np.uint8(FIRST_DIGIT - 1)
        return Example(question, answer, self.given(question), difficulty(puzzle, took))


def difficulty(puzzle: list[int], took: Effort) -> dict[str, Any]:
    """The `meta` of a graded puzzle; branches are rounded down to a power of two."""
    n_branches = 1 << (took.n_branches.bit_length() - 1) if took.n_branches else 0
    measures = {
        "blanks": puzzle.count(0),
        "grade": took.grade,
        "branches_at_least": n_branches,
    }
    return {"difficulty": measures, "n_branches": took.n_branches}
