"""Recall as training text: what is predicted can be looked up in the same example, and no more."""

import pytest

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError
from mixlab.data.config import DataConfig
from mixlab.data.loader import Loader
from mixlab.data.prepare import prepare

PAIRS, QUERIES = 5, 3
LENGTH = 2 * (PAIRS + QUERIES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    tree = {
        "corpus": {
            "kind": "recall", "n_train": 60, "n_validation": 20, "n_test": 20,
            "task": {"n_pairs": PAIRS, "n_queries": QUERIES, "n_keys": 12, "n_values": 7},
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 257},
        "chat": {"template": "bare"},
        "seq_len": LENGTH,
    }  # fmt: skip
    return prepare(decode(DataConfig, tree), tmp_path_factory.mktemp("cache"))


def test_only_answers_are_predicted_and_the_pairs_give_them(prepared):
    batch = Loader(prepared.split("train"), LENGTH, seed=3).batch(0, 40)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        pairs = dict(zip(tokens[: 2 * PAIRS : 2], tokens[1 : 2 * PAIRS : 2], strict=True))
        assert len(pairs) == PAIRS
        asked = [place for place, target in enumerate(targets) if target >= 0]
        assert asked == list(range(2 * PAIRS, LENGTH, 2))
        assert [targets[i] for i in asked] == [pairs[tokens[i]] for i in asked]


def test_each_letter_is_one_token(prepared):
    facts = prepared.manifest["splits"]["train"]
    assert facts["tokens"] == 60 * LENGTH
    assert facts["answer_tokens"] == 60 * QUERIES
    assert facts["sequences"] == 60, "an example fills a row"


def test_splits_share_no_pairs(prepared):
    def pairs(name):
        rows = prepared.split(name).tokens.reshape(-1, LENGTH)[:, : 2 * PAIRS].tolist()
        return {frozenset(zip(row[::2], row[1::2], strict=True)) for row in rows}

    assert not pairs("train") & (pairs("validation") | pairs("test"))


def test_more_pairs_than_keys_are_refused():
    with pytest.raises(ConfigError, match="at most n_keys = 8"):
        decode(
            DataConfig,
            {
                "corpus": {"kind": "recall", "task": {"n_pairs": 30, "n_keys": 8}},
                "tokenizer": {"kind": "bpe"},
            },
        )
