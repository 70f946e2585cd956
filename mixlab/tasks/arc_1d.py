"""One-dimensional ARC-style tasks: some demonstrated rows before and after, then one to transform.

The demonstrations always settle the answer: an example is kept only if all rules that agree with
every demonstration give the same result for the question. So the checker needs no stored answer.
"""

import itertools
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mixlab.core.errors import DataError, Rule
from mixlab.tasks.arc_1d_rules import RULES, Row, blocks
from mixlab.tasks.base import Example, Task
from mixlab.tasks.draws import generator, words

BLANK = 1
BACKGROUND = 2
"""Token of the background; colour c is BACKGROUND + c."""
N_COLOURS = 9


class Arc1D(Task):
    """Rows of pixels: `n_demos` pairs before and after, the question, and blanks for the answer."""

    kind: Literal["arc_1d"] = "arc_1d"
    generator_version: ClassVar[int] = 1
    blank_token: ClassVar[int] = BLANK
    symmetries: ClassVar[str] = "renaming the colours; permuting the demonstrations"

    width: int = Field(default=16, ge=8, le=64)
    """Pixels per row."""
    n_demos: int = Field(default=3, ge=1, le=4)
    """Pairs that demonstrate the rule."""
    rules: tuple[str, ...] = tuple(RULES)
    """Rules to draw from, all equally often."""
    max_tries: int = Field(default=1000, ge=1)
    """Draws that one example may use up before the settings count as impossible."""

    def model_post_init(self, context: Any) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown or not self.rules or len(set(self.rules)) < len(self.rules):
            raise Rule(
                "rules", unknown or list(self.rules), f"different names out of {', '.join(RULES)}"
            )

    @property
    def name(self) -> str:
        rules = "" if len(self.rules) == len(RULES) else f"-{len(self.rules)}-rules"
        return f"arc_1d-{self.width}-demos-{self.n_demos}{rules}"

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.n_demos + 2, self.width

    @property
    def alphabet(self) -> str:
        return "_?." + "123456789"

    def example(self, seed: int, index: int) -> Example:
        rng = generator(f"{self.kind} {self.generator_version} {self.width}", seed, index)
        name = rng.choice(self.rules)
        rule = RULES[name]
        for _ in range(self.max_tries):
            rows = [rule.sample(rng, self.width) for _ in range(self.n_demos + 1)]
            results = [rule.apply(row) for row in rows]
            if any(result is None or result == row for row, result in zip(rows, results)):  # noqa: B905
                continue
            pairs = list(zip(rows, results, strict=True))
            if len(set(rows)) == len(rows) and len(_readings(pairs[:-1], rows[-1])) == 1:
                return self._example(name, pairs)
        raise DataError(
            f"{self.name}: no example of the rule {name!r} whose demonstrations settle the answer "
            f"in {self.max_tries} tries (seed {seed}, example {index}). Raise n_demos or width, or "
            "leave the rule out."
        )

    def _example(self, name: str, pairs: list[tuple[Row, Row | None]]) -> Example:
        answer = np.array([row for pair in pairs for row in pair], np.uint8).ravel()
        answer += np.uint8(BACKGROUND)
        question = answer.copy()
        question[-self.width :] = BLANK
        meta = {"difficulty": {"rule": name, "blocks": len(blocks(pairs[-1][0]))}}
        return Example(question, answer, self.given(question), meta)

    def solve(self, question: np.ndarray) -> np.ndarray:
        question = self.tokens(question, "question")
        rows = self._rows(question)
        found = _readings(list(zip(rows[:-2:2], rows[1:-2:2], strict=True)), rows[-2])
        if len(found) != 1:
            how_many = "no rule fits" if not found else "rules that disagree fit"
            raise DataError(
                f"a question of {self.name} has no one answer: {how_many} its demonstrations."
            )
        answer = question.copy()
        answer[-self.width :] = np.array(found.pop(), np.uint8) + np.uint8(BACKGROUND)
        return answer

    def _rows(self, question: np.ndarray) -> list[Row]:
        rows = question.reshape(self.shape)
        if (rows[:-1] < BACKGROUND).any() or (rows[-1] != BLANK).any():
            raise DataError(
                f"a question of {self.name}: expected pixels in all rows but the last, and blanks "
                "there."
            )
        return [tuple(row) for row in (rows.astype(int) - BACKGROUND).tolist()]

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return np.array(
            [
                np.array_equal(answer, self.solve(question))
                for question, answer in zip(questions, answers, strict=True)
            ],
            bool,
        )

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        squares = np.asarray(answers).reshape(-1, *self.shape)
        return [self._canonical(rows) for rows in squares]

    def _canonical(self, rows: np.ndarray) -> bytes:
        """The least reading over all orders of the demonstrations, colours named as they appear."""
        pairs, last = rows[:-2].reshape(self.n_demos, -1), rows[-2:].ravel()
        readings = []
        for order in itertools.permutations(range(self.n_demos)):
            # The question goes first: it decides most names, whatever the order of the rest.
            flat = np.concatenate([last, *(pairs[i] for i in order)]).tolist()
            names = {BACKGROUND: BACKGROUND}
            readings.append(bytes(names.setdefault(t, BACKGROUND + len(names)) for t in flat))
        return min(readings)

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        B = len(indices)
        drawn = words("arc_1d", seed, indices, N_COLOURS + self.n_demos)
        colours = np.argsort(drawn[:, :N_COLOURS], axis=1) + BACKGROUND + 1
        fixed = np.broadcast_to(np.arange(BACKGROUND + 1), (B, BACKGROUND + 1))
        names = np.concatenate([fixed, colours], axis=1).astype(np.uint8)
        order = np.argsort(drawn[:, N_COLOURS:], axis=1)
        moved = []
        for grid in (questions, answers):
            flat = np.asarray(grid).reshape(B, self.length)
            demos = flat[:, : -2 * self.width].reshape(B, self.n_demos, -1)
            demos = np.take_along_axis(demos, order[:, :, None], axis=1).reshape(B, -1)
            flat = np.concatenate([demos, flat[:, -2 * self.width :]], axis=1)
            moved.append(np.take_along_axis(names, flat.astype(np.int64), axis=1))
        return moved[0], moved[1]

    # --- text ------------------------------------------------------------------------------

    def question_text(self, question: np.ndarray) -> str:
        return "\n".join(self.picture(question)).removesuffix("?" * self.width)

    def answer_text(self, question: np.ndarray, answer: np.ndarray) -> str:
        return self._lines(answer)[-1]

    def parse_answer(self, question: np.ndarray, text: str) -> np.ndarray | None:
        line = text.strip()
        places = [self.alphabet.find(char) for char in line]
        if len(places) != self.width or min(places) < BACKGROUND:
            return None
        answer = self.tokens(question, "question").copy()
        answer[-self.width :] = places
        return answer

    def picture(self, tokens: np.ndarray) -> list[str]:
        lines = self._lines(tokens)
        return [f"{a} -> {b}" for a, b in zip(lines[::2], lines[1::2], strict=True)]


def _readings(pairs: list[tuple[Row, Row]], last: Row) -> set[Row]:
    """What the rules that agree with all `pairs` make of `last`."""
    agreeing = [
        rule
        for rule in RULES.values()
        if all(rule.apply(before) == after for before, after in pairs)
    ]
    return {result for rule in agreeing if (result := rule.apply(last)) is not None}
