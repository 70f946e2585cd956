"""Multi-query associative recall: pairs of keys and values, then keys whose values are asked for.

    k1 v1 k2 v2 ... kn vn   q1 a1 q2 a2 ...      each q is one of the keys, each a its value

Attention solves it in two layers; a recurrent state has to hold all pairs at once. Keys of one
example are all different, values are drawn freely, and no key is asked for twice.

Source: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models"
        [arXiv:2312.04927], the task MQAR.
Ours:   queries follow each other without gaps, and are drawn evenly over the pairs.
"""

from string import ascii_letters, digits
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from mixlab.core.errors import DataError, Rule
from mixlab.tasks.base import Example, Task
from mixlab.tasks.draws import words

BLANK = 1
FIRST_KEY = 2
IGNORE = -100
"""Target of a place where nothing is asked; the default of torch's cross-entropy."""
VALUE_LETTERS = digits + "".join(map(chr, [*range(0x430, 0x450), *range(0x3B1, 0x3C2)]))
"""Characters of the values: digits, then small Cyrillic and Greek letters."""


class RecallRows(NamedTuple):
    """Examples as a language model reads them, one token after the other."""

    tokens: np.ndarray  # (n, T) int64: pairs, then queries each followed by its answer
    targets: np.ndarray  # (n, T) int64: the answer at each query, IGNORE elsewhere


class Recall(Task):
    """Key-value pairs, one per row of the grid, and rows that ask for the values of some keys."""

    kind: Literal["recall"] = "recall"
    generator_version: ClassVar[int] = 1
    blank_token: ClassVar[int] = BLANK
    symmetries: ClassVar[str] = "the order of the pairs; the order of the queries"

    n_pairs: int = Field(default=8, ge=2)
    """Key-value pairs of one example."""
    n_queries: int = Field(default=4, ge=1)
    """Keys whose values are asked for; at most `n_pairs`."""
    n_keys: int = Field(default=26, ge=2, le=len(ascii_letters))
    """Different keys to draw from; at least `n_pairs`."""
    n_values: int = Field(default=10, ge=2, le=len(VALUE_LETTERS))
    """Different values to draw from."""

    def model_post_init(self, context: Any) -> None:
        if self.n_pairs > self.n_keys:
            raise Rule("n_pairs", self.n_pairs, f"at most n_keys = {self.n_keys}")
        if self.n_queries > self.n_pairs:
            raise Rule("n_queries", self.n_queries, f"at most n_pairs = {self.n_pairs}")

    @property
    def name(self) -> str:
        return f"recall-{self.n_pairs}-pairs-{self.n_queries}-queries-{self.n_keys}-{self.n_values}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_pairs + self.n_queries, 2

    @property
    def alphabet(self) -> str:
        return "_?" + ascii_letters[: self.n_keys] + VALUE_LETTERS[: self.n_values]

    @property
    def first_value(self) -> int:
        """Token of the first value; keys are the tokens from FIRST_KEY up to it."""
        return FIRST_KEY + self.n_keys

    @property
    def chance(self) -> float:
        """Share of answers that a guess among all values gets right."""
        return 1 / self.n_values

    @property
    def guess_seen(self) -> float:
        """Mean share that a guess among the values of the row's own pairs gets right: the pair
        that is asked for, or another one that happens to have the same value."""
        return 1 / self.n_pairs + (1 - 1 / self.n_pairs) / self.n_values

    # --- examples --------------------------------------------------------------------------

    def rows(self, seed: int, indices: np.ndarray) -> RecallRows:
        """The examples that (seed, index) stand for, as sequences of T = 2 * rows tokens."""
        tokens = self._draw(seed, np.asarray(indices)).astype(np.int64)
        targets = np.full_like(tokens, IGNORE)
        asked = slice(2 * self.n_pairs, None, 2)
        targets[:, asked] = tokens[:, 2 * self.n_pairs + 1 :: 2]
        return RecallRows(tokens, targets)

    def _draw(self, seed: int, indices: np.ndarray) -> np.ndarray:
        """(n, T) uint8: answers of n examples, all of them filled in."""
        n, P, Q = len(indices), self.n_pairs, self.n_queries
        drawn = words(f"recall {self.generator_version}", seed, indices, self.n_keys + 2 * P)
        keys = np.argsort(drawn[:, : self.n_keys], axis=1)[:, :P] + FIRST_KEY  # (n, P)
        # The modulo of 64 random bits is uneven by less than 1e-17.
        values = drawn[:, self.n_keys : self.n_keys + P] % np.uint64(self.n_values)
        values = values.astype(np.int64) + self.first_value
        asked = np.argsort(drawn[:, self.n_keys + P :], axis=1)[:, :Q]  # (n, Q)
        pairs = np.stack([keys, values], axis=-1)  # (n, P, 2)
        queries = np.take_along_axis(pairs, asked[:, :, None], axis=1)  # (n, Q, 2)
        return np.concatenate([pairs, queries], axis=1).reshape(n, -1).astype(np.uint8)

    def example(self, seed: int, index: int) -> Example:
        answer = self._draw(seed, np.array([index]))[0]
        question = answer.copy()
        question[2 * self.n_pairs + 1 :: 2] = BLANK
        seen = answer[1 : 2 * self.n_pairs : 2]
        meta = {"difficulty": {"pairs": self.n_pairs, "values": len(np.unique(seen))}}
        return Example(question, answer, self.given(question), meta)

    def solve(self, question: np.ndarray) -> np.ndarray:
        question = self.tokens(question, "question")
        cells = question.reshape(self.shape)
        pairs, queries = cells[: self.n_pairs], cells[self.n_pairs :]
        keys_fit = (cells[:, 0] >= FIRST_KEY) & (cells[:, 0] < self.first_value)
        values_fit = pairs[:, 1] >= self.first_value
        if not keys_fit.all() or not values_fit.all() or (queries[:, 1] != BLANK).any():
            raise DataError(
                f"a question of {self.name}: expected {self.n_pairs} rows of a key and a value, "
                f"then {self.n_queries} of a key and a blank."
            )
        value_of = dict(pairs.tolist())
        if len(value_of) < self.n_pairs or not set(queries[:, 0].tolist()) <= set(value_of):
            raise DataError(
                f"a question of {self.name} has no one answer: expected different keys, and "
                "queries among them."
            )
        answer = cells.copy()
        answer[self.n_pairs :, 1] = [value_of[key] for key in queries[:, 0].tolist()]
        return answer.ravel()

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        solved = np.stack([self.solve(question) for question in questions])
        return (np.asarray(answers) == solved).all(axis=1)

    # --- equivalent examples ---------------------------------------------------------------

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        cells = np.asarray(answers).reshape(-1, *self.shape)
        return [self._sorted(pairs) for pairs in cells]

    def _sorted(self, cells: np.ndarray) -> bytes:
        pairs, queries = cells[: self.n_pairs].tolist(), cells[self.n_pairs :].tolist()
        return bytes(token for row in [*sorted(pairs), *sorted(queries)] for token in row)

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n, P = len(indices), self.n_pairs
        drawn = words("recall", seed, indices, P + self.n_queries)
        order = np.concatenate(
            [np.argsort(drawn[:, :P], axis=1), np.argsort(drawn[:, P:], axis=1) + P], axis=1
        )
        moved = [
            np.take_along_axis(np.asarray(rows).reshape(n, *self.shape), order[:, :, None], axis=1)
            for rows in (questions, answers)
        ]
        return moved[0].reshape(n, -1), moved[1].reshape(n, -1)
