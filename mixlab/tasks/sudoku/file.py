"""Sudoku puzzles from a file of the user's, such as the public Sudoku-Extreme collection."""

from typing import Any, Literal

import numpy as np

from mixlab.core.errors import DataError
from mixlab.tasks.base import Example
from mixlab.tasks.puzzle_csv import Row
from mixlab.tasks.sudoku.boxes import MAX_BLANKS
from mixlab.tasks.sudoku.dug import difficulty
from mixlab.tasks.sudoku.rules import BLANK, SudokuRules
from mixlab.tasks.sudoku.solver import effort
from mixlab.tasks.written import WrittenTask


class SudokuFile(WrittenTask, SudokuRules):
    """Puzzles as written: checked row by row, refused with the line, never repaired.

    A blank is "." or "0". A row without an answer is solved here and must have one solution.
    """

    kind: Literal["sudoku-file"] = "sudoku-file"
    size: Literal[4, 6, 9] = 9
    """Side of the grid."""
    grade: bool = False
    """Solve every puzzle to grade it, which also refuses those with several solutions. Takes some
    milliseconds per puzzle. Otherwise only the answer is held against the rules and the givens."""

    def read_row(self, row: Row, where: str) -> Example:
        question = self._read(row.question.replace("0", "."), f"{where}, question")
        if (question != BLANK).sum() < self.side**2 - MAX_BLANKS[self.side]:
            raise DataError(
                f"{where}: expected at least {self.side**2 - MAX_BLANKS[self.side]} givens; with "
                "fewer no puzzle has one solution."
            )
        if row.answer:
            answer = self._read(row.answer, f"{where}, answer")
            self._hold_against_rules(question, answer, where)
        if not row.answer or self.grade:
            try:
                solved = self.solve(question)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            answer = solved
        meta = self._meta(question, row)
        return Example(question, answer, self.given(question), meta)

    def _read(self, text: str, where: str) -> np.ndarray:
        if len(text) != self.length:
            raise DataError(
                f"{where}: expected {self.length} characters for a {self.side}x{self.side} grid, "
                f"found {len(text)}."
            )
        tokens = [self.alphabet.find(char, 1) for char in text]
        if -1 in tokens:
            at = tokens.index(-1)
            raise DataError(
                f"{where}: expected digits 1 to {self.side} and blanks as '.' or '0', found "
                f"{text[at]!r} at place {at + 1}."
            )
        return np.array(tokens, np.uint8)

    def _hold_against_rules(self, question: np.ndarray, answer: np.ndarray, where: str) -> None:
        changed = np.flatnonzero((question != BLANK) & (question != answer))
        if len(changed):
            row, col = divmod(int(changed[0]), self.side)
            raise DataError(
                f"{where}: the answer changes the given in row {row + 1}, column {col + 1}."
            )
        if not self.obeys_rules(answer[None])[0]:
            raise DataError(
                f"{where}: the answer is no solution: expected every digit once in each row, "
                "column and box."
            )

    def _meta(self, question: np.ndarray, row: Row) -> dict[str, Any]:
        puzzle = self.digits(question).tolist()
        if self.grade:
            meta = difficulty(puzzle, effort(self.board, puzzle))
        else:
            meta = {"difficulty": {"blanks": puzzle.count(0)}}
        return {**meta, "line": row.number, "rating": row.rating}
