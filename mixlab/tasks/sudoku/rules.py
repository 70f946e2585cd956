"""What all Sudoku tasks share: tokens, the rules as a checker, symmetries and pictures."""

from typing import ClassVar

import numpy as np

from mixlab.core.errors import DataError
from mixlab.tasks.base import SquareTask
from mixlab.tasks.splits import split_of
from mixlab.tasks.sudoku.boxes import Boxes, boxes
from mixlab.tasks.sudoku.solver import MAX_BRANCHES, SearchLimit, solutions
from mixlab.tasks.sudoku.symmetry import canonical_forms, transform

BLANK = 1
FIRST_DIGIT = 2
"""Token of digit 1; digit d is FIRST_DIGIT - 1 + d."""

_MAX_REDRAWS = 1000


class SudokuRules(SquareTask):
    """A task on Sudoku grids; a family adds where the puzzles come from."""

    blank_token: ClassVar[int] = BLANK
    blank_characters: ClassVar[str] = "0_*?"
    frame_characters: ClassVar[str] = "|+-"
    symmetries: ClassVar[str] = (
        "renaming digits; permuting bands, rows inside a band, stacks, columns inside a stack; "
        "transposing where boxes are square"
    )

    @property
    def board(self) -> Boxes:
        return boxes(self.side)

    @property
    def alphabet(self) -> str:
        return " ." + "123456789"[: self.side]

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        keeps_givens = ((answers == questions) | (questions == BLANK)).all(axis=1)
        return keeps_givens & self.obeys_rules(answers)

    def obeys_rules(self, answers: np.ndarray) -> np.ndarray:
        """Whether each (n, L) grid has every digit once per row, column and box. (n,) bool."""
        N, h, w = self.side, self.board.box_rows, self.board.box_cols
        # One bit per token; N cells of a unit hold all N digits exactly if all N bits are there.
        bits = (np.int64(1) << answers.astype(np.int64)).reshape(-1, N, N)
        grouped = bits.reshape(-1, N // h, h, N // w, w).swapaxes(2, 3).reshape(-1, N, N)
        wanted = ((1 << N) - 1) << FIRST_DIGIT
        units = (bits, bits.swapaxes(1, 2), grouped)
        met = [(np.bitwise_or.reduce(u, axis=2) == wanted).all(axis=1) for u in units]
        return met[0] & met[1] & met[2]

    def solve(self, question: np.ndarray) -> np.ndarray:
        question = self.tokens(question, "question")
        text = self.question_text(question).replace("\n", "")
        try:
            found = solutions(self.board, self.digits(question).tolist())
        except SearchLimit:
            raise DataError(
                f"the {self.side}x{self.side} Sudoku {text} cannot be settled within "
                f"{MAX_BRANCHES} branches of the search: expected a puzzle with one solution."
            ) from None
        if len(found) != 1:
            how_many = "no solution" if not found else "more than one solution"
            raise DataError(f"the {self.side}x{self.side} Sudoku {text} has {how_many}.")
        return np.array(found[0], np.uint8) + np.uint8(FIRST_DIGIT - 1)

    def digits(self, tokens: np.ndarray) -> np.ndarray:
        """Digits 1 to side, 0 for every other token; same shape."""
        return np.where(tokens >= FIRST_DIGIT, tokens, FIRST_DIGIT - 1) - (FIRST_DIGIT - 1)

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        forms = canonical_forms(self.board, self.digits(questions), self.digits(answers))
        return [form.tobytes() for form in forms]

    def split_keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        """The puzzle up to symmetry; on 4x4 the solution grid itself.

        All 288 solved 4x4 grids are equivalent to one of two, so a split up to symmetry is not
        possible there. What must not be memorised is the solution, so it decides the split.
        """
        if self.side == 4:
            return [answer.tobytes() for answer in answers]
        return self.keys(questions, answers)

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        moved = transform(self.board, [questions, answers], FIRST_DIGIT, "sudoku", seed, indices)
        if self.side != 4:
            return moved[0], moved[1]
        # On 4x4 a symmetry leads to other solution grids, also to those of other splits: draw
        # again until the split is kept. Of all symmetries at least the identity keeps it.
        home = [split_of(answer.tobytes()) for answer in answers]
        for attempt in range(_MAX_REDRAWS):
            astray = _astray(moved[1], home)
            if not len(astray):
                return moved[0], moved[1]
            purpose, rows = f"sudoku again {attempt}", [questions[astray], answers[astray]]
            again = transform(
                self.board, rows, FIRST_DIGIT, purpose, seed, np.asarray(indices)[astray]
            )
            moved[0][astray], moved[1][astray] = again
        astray = _astray(moved[1], home)
        moved[0][astray], moved[1][astray] = questions[astray], answers[astray]
        return moved[0], moved[1]

    def repeat_keys(self, questions: np.ndarray, split_keys: list[bytes]) -> list[bytes]:
        if self.side == 4:  # many puzzles share one of the few solutions
            return [question.tobytes() for question in questions]
        return split_keys

    def picture(self, tokens: np.ndarray) -> list[str]:
        h, w = self.board.box_rows, self.board.box_cols
        rule = "+".join(["-" * (2 * w + 1)] * (self.side // w))[1:-1]
        lines = []
        for row, line in enumerate(self._lines(tokens)):
            if row and row % h == 0:
                lines.append(rule)
            groups = [" ".join(line[i : i + w]) for i in range(0, self.side, w)]
            lines.append(" | ".join(groups))
        return lines


def _astray(answers: np.ndarray, home: list[str]) -> np.ndarray:
    """The rows whose solution grid lies in another split than `home` says."""
    return np.array(
        [i for i, answer in enumerate(answers) if split_of(answer.tobytes()) != home[i]], np.int64
    )
