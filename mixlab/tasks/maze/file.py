"""Mazes from a file of the user's, such as the public Maze-Hard set."""

from typing import Literal

import numpy as np
from pydantic import Field

from mixlab.core.errors import DataError
from mixlab.tasks.base import Example
from mixlab.tasks.maze.rules import PATH, MazeRules
from mixlab.tasks.puzzle_csv import Row
from mixlab.tasks.written import WrittenTask


class MazeFile(WrittenTask, MazeRules):
    """Mazes as written: checked row by row, refused with the line, never repaired.

    A row reads "#" wall, " " or "." free, "S", "G" and in the answer "o" path. A row without an
    answer gets the shortest path that `solve` finds.
    """

    kind: Literal["maze-file"] = "maze-file"
    size: int = Field(default=30, ge=4, le=64)
    """Cells per row."""

    def read_row(self, row: Row, where: str) -> Example:
        question = self._read(row.question, f"{where}, question", "#.SG")
        try:
            answer = self.solve(question)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        n_steps = int((answer == PATH).sum()) + 1
        if row.answer:
            answer = self._read(row.answer, f"{where}, answer", "#.SGo")
            if not self.valid(question[None], answer[None], answer[None])[0]:
                raise DataError(
                    f"{where}: the answer marks no shortest path: expected the question with a "
                    f"path of {n_steps} steps from S to G."
                )
        measures = {"path_at_least": n_steps - n_steps % 10}
        meta = {"difficulty": measures, "path": n_steps, "line": row.number, "rating": row.rating}
        return Example(question, answer, self.given(question), meta)

    def _read(self, text: str, where: str, allowed: str) -> np.ndarray:
        if len(text) != self.length:
            raise DataError(
                f"{where}: expected {self.length} characters for a {self.side}x{self.side} maze, "
                f"found {len(text)}."
            )
        text = text.replace(" ", ".")
        strange = next((i for i, char in enumerate(text) if char not in allowed), None)
        if strange is not None:
            raise DataError(
                f"{where}: expected only {' '.join(allowed)}, found {text[strange]!r} at place "
                f"{strange + 1}."
            )
        return np.array([self.alphabet.index(char) for char in text], np.uint8)
