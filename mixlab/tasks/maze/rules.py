"""What all maze tasks share: tokens, the checker that takes any shortest path, symmetries.

Source: the tokens and the task are those of Maze-Hard (Wang et al., "Hierarchical Reasoning Model",
arXiv 2506.21734), after Lehnert et al., "Beyond A*" (arXiv 2402.14083).
"""

from typing import ClassVar

import numpy as np

from mixlab.core.errors import DataError
from mixlab.tasks.base import SquareTask
from mixlab.tasks.draws import words
from mixlab.tasks.maze.paths import n_steps, shortest_path, stride

WALL, FREE, START, GOAL, PATH = 1, 2, 3, 4, 5


class MazeRules(SquareTask):
    """A square maze; the answer marks the free cells of a shortest path from S to G."""

    blank_token: ClassVar[int] = FREE
    symmetries: ClassVar[str] = "the eight rotations and reflections; exchanging S and G"

    @property
    def alphabet(self) -> str:
        return "_#.SGo"

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        # A path cell may only stand where the question is free; all else stays as it is.
        kept = ((answers == questions) | ((questions == FREE) & (answers == PATH))).all(axis=1)
        verdicts = [
            bool(ok) and self._is_shortest(question, answer)
            for ok, question, answer in zip(kept, questions, answers, strict=True)
        ]
        return np.array(verdicts, bool)

    def _is_shortest(self, question: np.ndarray, answer: np.ndarray) -> bool:
        start, goal = self.ends(question)
        length = n_steps(start, goal, self._cells(question != WALL), self.side)
        if length is None or int((answer == PATH).sum()) != length - 1:
            return False
        # With no cell to spare, S and G are joined inside the marks only by a shortest path.
        marked = self._cells(answer >= START)
        return n_steps(start, goal, marked, self.side) == length

    def solve(self, question: np.ndarray) -> np.ndarray:
        question = self.tokens(question, "question")
        start, goal = self.ends(question)
        found = shortest_path(start, goal, self._cells(question != WALL), self.side)
        if found is None:
            raise DataError(f"a {self.name} maze has no path from S to G.")
        return self.mark(question, found.path)

    def mark(self, question: np.ndarray, path: list[int]) -> np.ndarray:
        """The question with the inner cells of `path` marked."""
        answer = question.copy()
        for cell in path[1:-1]:
            answer[self._place(cell)] = PATH
        return answer

    def ends(self, question: np.ndarray) -> tuple[int, int]:
        """Start and goal as bits.

        Raises:
            DataError: not exactly one S and one G.
        """
        bits = []
        for token in (START, GOAL):
            places = np.flatnonzero(question == token)
            if len(places) != 1:
                raise DataError(
                    f"a {self.name} maze has {len(places)} cells {self.alphabet[token]}: expected "
                    "one."
                )
            row, col = divmod(int(places[0]), self.side)
            bits.append(1 << row * stride(self.side) + col)
        return bits[0], bits[1]

    def _cells(self, mask: np.ndarray) -> int:
        """The cells where `mask` (L,) holds, as bits."""
        padded = np.zeros((self.side, stride(self.side)), bool)
        padded[:, : self.side] = mask.reshape(self.side, self.side)
        return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")

    def _place(self, cell: int) -> int:
        row, col = divmod(cell.bit_length() - 1, stride(self.side))
        return row * self.side + col

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        squares = np.asarray(questions).reshape(-1, self.side, self.side)
        swapped = _SWAP_ENDS[squares]
        forms = [
            np.ascontiguousarray(_turned(s, t)).reshape(len(squares), -1)
            for s in (squares, swapped)
            for t in range(8)
        ]
        return [min(form[i].tobytes() for form in forms) for i in range(len(squares))]

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Turned mazes and answers. Where several paths are shortest, the image of the stored one
        is among them, though not always the one that `solve` would choose."""
        drawn = words("maze", seed, indices, 1)[:, 0] >> np.uint64(60)
        moved = []
        for grid in (questions, answers):
            squares = np.asarray(grid).reshape(-1, self.side, self.side)
            squares = np.where((drawn >= 8)[:, None, None], _SWAP_ENDS[squares], squares)
            out = np.empty_like(squares)
            for turn in range(8):
                rows = drawn % np.uint64(8) == turn
                out[rows] = _turned(squares[rows], turn)
            moved.append(out.reshape(len(out), -1))
        return moved[0], moved[1]


_SWAP_ENDS = np.array([0, WALL, FREE, GOAL, START, PATH], np.uint8)


def _turned(squares: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight rotations and reflections of each (n, n) square."""
    turned = np.rot90(squares, turn % 4, axes=(1, 2))
    return turned.swapaxes(1, 2) if turn >= 4 else turned
