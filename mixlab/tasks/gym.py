"""Tasks of the package reasoning-gym, in compact texts and with a strict score.

The package's own scores give partial credit to an answer that merely contains the right one or
echoes the question; here an answer is right only if it is the stored one, character by character.

A row is the question's characters, padded, and then a slot for the answer's, which ends with END in
every place that is left.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mixlab.core.errors import ConfigError, DataError, MissingPackageError, Rule
from mixlab.tasks.base import PAD, Example, Task
from mixlab.tasks.draws import words
from mixlab.tasks.gym_texts import TEXTS

BLANK = 1
END = 2
FIRST_CHARACTER = 3

_MAX_MEASURE = 64
_N_ENTRIES = 1 << 30  # the package makes entries one by one, so a size costs nothing


class ReasoningGym(Task):
    """One task of the package, by its name there."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    generator_version: ClassVar[int] = 1
    blank_token: ClassVar[int] = BLANK
    symmetries: ClassVar[str] = "none: only equal questions are equivalent"

    task: str = "chain_sum"
    """The package's name of the task."""
    options: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Settings of the task as the package names them, such as max_terms."""
    question_size: int = Field(default=64, ge=1, le=4096)
    """Characters that a question may have."""
    answer_size: int = Field(default=16, ge=2, le=1024)
    """Characters that an answer may have, and one END."""

    def model_post_init(self, context: Any) -> None:
        if self.task not in TEXTS:
            raise Rule("task", self.task, f"one of {', '.join(TEXTS)}")

    @property
    def name(self) -> str:
        return f"reasoning-gym-{self.task}"

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.question_size + self.answer_size

    @property
    def alphabet(self) -> str:
        return "_?;" + TEXTS[self.task].characters

    def example(self, seed: int, index: int) -> Example:
        # The package draws entry i by seed + i; scattered seeds keep two seeds' entries apart.
        scattered = int(words("reasoning-gym", seed, np.zeros(1), 1)[0, 0] >> np.uint64(33))
        entry = _entries(self.task, scattered, json.dumps(self.options, sort_keys=True))[index]
        question_text, answer_text = TEXTS[self.task].read(entry)
        question = np.full(self.length, BLANK, np.uint8)
        question[: self.question_size] = PAD
        question[: len(question_text)] = self._encode(
            question_text, "question_size", self.question_size
        )
        answer = question.copy()
        answer[self.question_size :] = END
        end = self.question_size + len(answer_text)
        # One END at least, so that a model has to say where the answer stops.
        answer[self.question_size : end] = self._encode(
            answer_text, "answer_size", self.answer_size - 1
        )
        return Example(question, answer, self.given(question), {"difficulty": _difficulty(entry)})

    def _encode(self, text: str, field: str, size: int) -> list[int]:
        if len(text) > size:
            raise ConfigError(
                field,
                getattr(self, field),
                f"room for {len(text)} characters, which an example of {self.name} has",
                "Raise it, or make the task smaller with options.",
            )
        tokens = [self.alphabet.find(char, FIRST_CHARACTER) for char in text]
        if -1 in tokens:
            raise DataError(
                f"an example of {self.name} has the character {text[tokens.index(-1)]!r}: expected "
                f"only {TEXTS[self.task].characters}. Change options."
            )
        return tokens

    def solve(self, question: np.ndarray) -> np.ndarray:
        raise DataError(f"{self.name} is scored against stored answers: give the expected one.")

    def valid(self, questions: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return (answers == expected).all(axis=1)

    def keys(self, questions: np.ndarray, answers: np.ndarray) -> list[bytes]:
        return [question.tobytes() for question in np.asarray(questions, np.uint8)]

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.array(questions, np.uint8), np.array(answers, np.uint8)

    # --- text ------------------------------------------------------------------------------

    def question_text(self, question: np.ndarray) -> str:
        return self._text(question[: self.question_size])

    def answer_text(self, question: np.ndarray, answer: np.ndarray) -> str:
        return self._text(answer[self.question_size :])

    def _text(self, tokens: np.ndarray) -> str:
        return "".join(self.alphabet[t] for t in np.asarray(tokens).tolist() if t > END)

    def parse_answer(self, question: np.ndarray, text: str) -> np.ndarray | None:
        tokens = [self.alphabet.find(char, FIRST_CHARACTER) for char in text.strip()]
        if -1 in tokens or not 0 < len(tokens) < self.answer_size:
            return None
        answer = self.tokens(question, "question").copy()
        answer[self.question_size :] = END
        answer[self.question_size : self.question_size + len(tokens)] = tokens
        return answer

    def render(
        self, question: np.ndarray, answer: np.ndarray | None = None, width: int = 80
    ) -> str:
        text = self.question_text(question)
        if answer is None:
            return text
        reply = self.answer_text(question, answer)
        fits = len(text) + len(reply) + 4 <= width
        return f"{text} -> {reply}" if fits else f"{text}\n-> {reply}"


@lru_cache(maxsize=8)
def _entries(task: str, seed: int, options: str) -> Any:
    """The package's data set, which makes entry i when it is asked for."""
    try:
        import reasoning_gym
    except ImportError:
        raise MissingPackageError("reasoning-gym", f"the task {task!r}", "reasoning") from None
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=_N_ENTRIES, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            "options", json.loads(options), f"settings that reasoning-gym's {task} takes: {error}"
        ) from None


def _difficulty(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The measures by which the package grades the entry itself, rather than its settings."""
    facts = entry["metadata"]
    names = facts.get("difficulty", {})
    # Small counts only: a histogram over arbitrary numbers would say nothing.
    own = {
        name: facts[name]
        for name in names
        if isinstance(facts.get(name), int) and 0 <= facts[name] <= _MAX_MEASURE
    }
    return own or {"task": facts["source_dataset"]}
