"""What every task is: a config that makes, renders and checks questions of one fixed length.

A question and its answer are rows of L tokens, laid out as a grid. The answer repeats what the
question gives and fills in the rest, so a model may read the one and write the other in place; the
text form serves models that read and write characters.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mixlab.core.config import Config
from mixlab.core.errors import DataError
from mixlab.tasks.splits import split_of

PAD = 0
"""Token of positions that carry nothing, in every task."""


class Example(NamedTuple):
    """One question with its answer; `meta["difficulty"]` is what histograms are made of."""

    question: np.ndarray  # (L,) uint8
    answer: np.ndarray  # (L,) uint8
    given: np.ndarray  # (L,) bool: the question states this token of the answer
    meta: dict[str, Any]


class Verdict(NamedTuple):
    """How good an answer is. Several answers may be valid; one of them is the stored one."""

    exact: bool  # every token as stored
    valid: bool  # accepted by the rules of the task, which know only the question


class Verdicts(NamedTuple):
    """`Verdict` for n answers."""

    exact: np.ndarray  # (n,) bool
    valid: np.ndarray  # (n,) bool


class Task(Config):
    """Base of the tasks. All arrays of tokens are uint8; all draws are functions of their seed."""

    generator_version: ClassVar[int] = 1
    """Goes up whenever the same seed gives other examples or other splits."""
    blank_token: ClassVar[int]
    """Stands in a question where the answer is to be filled in."""
    symmetries: ClassVar[str]
    """The changes that turn an example into an equivalent one, in words."""

    # --- what a family says about itself ---------------------------------------------------

    @property
    def name(self) -> str:
        """A short name that tells the family and its difficulty, such as maze-10x10."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid that the L tokens form, in reading order."""
        raise NotImplementedError

    @property
    def alphabet(self) -> str:
        """One character per token, in the order of the tokens."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        rows, cols = self.shape
        return rows * cols

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    # --- what a family does ----------------------------------------------------------------

    def example(self, seed: int, index: int) -> Example:
        """The example that (seed, index) stands for, whatever its split.

        Raises:
            DataError: nothing of the difficulty asked for within a bounded number of tries.
        """
        raise NotImplementedError

    def candidates(self, split: str, seed: int) -> Iterator[Example]:
        """Examples to build a set from; those of another split are left out afterwards."""
        index = 0
        while True:
            yield self.example(seed, index)
            index += 1

    def solve(self, question: np.ndarray) -> np.ndarray:
        """The stored answer, worked out from the question alone.

        Raises:
            DataError: no answer, or more than one where there has to be one.
        """
        raise NotImplementedError

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Whether the rules accept each answer. All (n, L) -> (n,) bool."""
        raise NotImplementedError

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        """Canonical forms of n examples: equal exactly when a symmetry joins the two."""
        raise NotImplementedError

    def split_keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        """What decides the split. Equal keys never lie in two splits."""
        return self.keys(questions, answers)

    def homes(self, split: str, split_keys: list[bytes]) -> list[str]:
        """The split of each candidate that `candidates(split, ...)` gave."""
        return [split_of(key) for key in split_keys]

    def repeat_keys(self, questions: np.ndarray, split_keys: list[bytes]) -> list[bytes]:
        """What no two examples of a set share."""
        return split_keys

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Equivalent examples of the same split, row i drawn by (seed, indices[i]) alone."""
        raise NotImplementedError

    # --- what follows ----------------------------------------------------------------------

    def given(self, questions: np.ndarray) -> np.ndarray:
        """Which tokens the questions state; same shape, bool."""
        return np.asarray(questions) != self.blank_token

    def check(
        self, question: np.ndarray, answer: np.ndarray, expected: np.ndarray | None = None
    ) -> Verdict:
        """Judge one answer; without `expected` the stored answer is worked out by `solve`."""
        rows = self.tokens(question, "question")[None]
        stored = None if expected is None else np.asarray(expected)[None]
        verdicts = self.check_many(rows, np.asarray(answer)[None], stored)
        return Verdict(bool(verdicts.exact[0]), bool(verdicts.valid[0]))

    def check_many(
        self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray | None = None
    ) -> Verdicts:
        """Judge n answers, all (n, L); see `check`."""
        questions = self.tokens(questions, "questions", n_dims=2)
        answers = self.tokens(answers, "answers", n_dims=2)
        if expected is None:
            expected = np.stack([self.solve(question) for question in questions])
        expected = self.tokens(expected, "expected", n_dims=2)
        if not len(questions) == len(answers) == len(expected):
            raise DataError(
                f"answers to {self.name} = {len(answers)} rows: expected one for each of the "
                f"{len(questions)} questions and {len(expected)} stored answers."
            )
        exact = (answers == expected).all(axis=1)
        return Verdicts(exact, self.valid(questions, answers, expected))

    def tokens(self, values: np.ndarray, what: str, n_dims: int = 1) -> np.ndarray:
        """`values` as uint8 tokens (..., L).

        Raises:
            DataError: another shape, or a value outside the vocabulary; names the row.
        """
        array = np.asarray(values)
        shape = f"({'n, ' * (n_dims - 1)}{self.length})"
        if array.ndim != n_dims or array.shape[-1] != self.length:
            raise DataError(
                f"{what} of {self.name} has shape {array.shape}: expected {shape}, the "
                f"{self.shape[0]} by {self.shape[1]} grid in reading order."
            )
        if array.dtype == bool or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{what} of {self.name} has dtype {array.dtype}: expected integers.")
        outside = (array < 0) | (array >= self.vocab_size)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise DataError(
                f"{what}{list(at)} of {self.name} = {int(array[at])}: expected a token from 0 to "
                f"{self.vocab_size - 1}."
            )
        return array.astype(np.uint8)

    # --- text ------------------------------------------------------------------------------

    def question_text(self, question: np.ndarray) -> str:
        """The question as lines of characters, for a language model."""
        return "\n".join(self._lines(question))

    blank_characters: ClassVar[str] = ""
    """What people write for a blank besides the alphabet's own character."""
    frame_characters: ClassVar[str] = ""
    """What people draw around cells, and what means nothing."""

    def parse_question(self, text: str) -> np.ndarray:
        """The tokens (L,) of a question that somebody has written, in one line or in several.

        Raises:
            DataError: too many or too few cells, or a character that the task does not have.
        """
        blank = self.alphabet[self.blank_token]
        chars = [char for char in text if not char.isspace() and char not in self.frame_characters]
        chars = [blank if char in self.blank_characters else char for char in chars]
        known = self.alphabet.replace(" ", "")
        for place, char in enumerate(chars):
            if char not in known:
                raise DataError(
                    f"cell {place + 1} of a {self.name} puzzle = {char!r}: expected one of "
                    f"{known}, where {blank} is a blank cell."
                )
        if len(chars) != self.length:
            rows, cols = self.shape
            raise DataError(
                f"a {self.name} puzzle has {len(chars)} cells: expected {self.length}, the "
                f"{rows} by {cols} grid in reading order, with {blank} for a blank cell."
            )
        return np.array([self.alphabet.index(char) for char in chars], np.uint8)

    def answer_text(self, question: np.ndarray, answer: np.ndarray) -> str:
        """What a language model should write."""
        return "\n".join(self._lines(answer))

    def parse_answer(self, question: np.ndarray, text: str) -> np.ndarray | None:
        """The tokens (L,) that `text` states, or None unless it is an answer and nothing else.

        Blanks around the whole are allowed; an answer inside other text is not an answer.
        """
        rows, cols = self.shape
        lines = text.strip().split("\n")
        if len(lines) != rows or any(len(line) != cols for line in lines):
            return None
        places = [self.alphabet.find(char) for char in "".join(lines)]
        return None if min(places) < 0 else np.array(places, np.uint8)

    def score_text(
        self, question: np.ndarray, text: str, expected: np.ndarray | None = None
    ) -> Verdict:
        """Judge a written answer; what does not parse is neither exact nor valid."""
        answer = self.parse_answer(question, text)
        if answer is None:
            return Verdict(exact=False, valid=False)
        return self.check(question, answer, expected)

    def render(
        self, question: np.ndarray, answer: np.ndarray | None = None, width: int = 80
    ) -> str:
        """Question and answer for a terminal: beside each other where `width` columns allow."""
        left = self.picture(self.tokens(question, "question"))
        if answer is None:
            return "\n".join(left)
        right = self.picture(self.tokens(answer, "answer"))
        gap = max(map(len, left)) + 3
        if gap + max(map(len, right)) > width:
            return "\n".join([*left, "", *right])
        return "\n".join(f"{a:<{gap}}{b}".rstrip() for a, b in zip(left, right, strict=True))

    def picture(self, tokens: np.ndarray) -> list[str]:
        """The lines of one grid on a terminal."""
        return self._lines(tokens)

    def _lines(self, tokens: np.ndarray) -> list[str]:
        cols = self.shape[1]
        chars = "".join(self.alphabet[token] for token in np.asarray(tokens).tolist())
        return [chars[i : i + cols] for i in range(0, len(chars), cols)]


class SquareTask(Task):
    """Base of the tasks on square grids; a family has a field `size`, the cells per row."""

    @property
    def side(self) -> int:
        """Cells per row."""
        return self.size  # type: ignore[attr-defined]

    @property
    def shape(self) -> tuple[int, int]:
        return self.side, self.side
