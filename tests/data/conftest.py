"""Small corpora and a listener, for the tests of the data package."""

from pathlib import Path

import hypothesis
import pytest
from data_samples import Recorder, random_text

from mixlab.core.config import decode
from mixlab.data.config import DataConfig
from mixlab.data.prepare import prepare

# A busy machine is no failure: no example has a deadline.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


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
