"""Text and a listener that the tests of the data package share."""

import random
from contextlib import contextmanager


class Recorder:
    """A progress listener that keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: dict[str, tuple[int | None, int]] = {}

    @contextmanager
    def task(self, description, total):
        done = 0

        def advance(n):
            nonlocal done
            done += n

        yield advance
        self.tasks[description] = (total, done)

    def note(self, message):
        self.notes.append(message)


def random_text(seed: int, n_words: int = 300) -> str:
    """Words drawn at random: two such texts share no 13 words in a row."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(1, 7))) for _ in range(80)]
    lines = (" ".join(generator.choices(words, k=9)) for _ in range(n_words // 9))
    return "\n".join(lines) + "\n"
