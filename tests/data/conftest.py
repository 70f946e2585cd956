"""Small corpora and a listener, for the tests of the data package."""

import random
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixlab.core.config import decode
from mixlab.data.config import DataConfig
from mixlab.data.prepare import prepare


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


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty text files of about 1.4 kB."""
    root = tmp_path / "corpus"
    root.mkdir()
    for i in range(40):
        (root / f"doc{i:02d}.txt").write_text(random_text(i), encoding="utf-8", newline="")
    return root


@pytest.fixture
def data_config():
    def make(path, *, document="file", seq_len=32, vocab_size=300, split=None, **corpus):
        tree = {
            "corpus": {"kind": "text", "path": str(path), "document": document, **corpus},
            "tokenizer": {"kind": "bpe", "vocab_size": vocab_size},
            "seq_len": seq_len,
            "split": split or {},
        }
        return decode(DataConfig, tree)

    return make


@pytest.fixture
def prepared(folder, data_config, tmp_path):
    return prepare(data_config(folder), tmp_path / "cache")
