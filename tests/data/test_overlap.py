"""13-gram overlap: against sets of word tuples, on planted leaks, and the two ways to act."""

import re

import numpy as np
import pytest
from data_samples import random_text
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.errors import DataError
from mixlab.data.overlap import N_WORDS, GramSet, grams
from mixlab.data.prepare import prepare
from mixlab.data.snapshot import document_hash

WORDY = st.lists(st.sampled_from(["a", "B", "c_1", "\u00c9t\u00e9"]), max_size=40).map(" ".join)


def gram_tuples(text: str) -> list[tuple[str, ...]]:
    """The definition, without hashes."""
    words = re.findall(r"\w+", text.lower())
    if len(words) < N_WORDS:
        return [tuple(text.lower().split())] if text.strip() else []
    return [tuple(words[i : i + N_WORDS]) for i in range(len(words) - N_WORDS + 1)]


@given(st.lists(WORDY, max_size=4), WORDY)
def test_it_counts_what_sets_of_tuples_count(train, held_out):
    members = GramSet(grams(held_out))
    for text in train:
        members.mark(grams(text))
    known = {gram for text in train for gram in gram_tuples(text)}
    assert members.n_seen(grams(held_out)) == sum(g in known for g in gram_tuples(held_out))


def test_order_and_case_and_punctuation():
    words = [f"w{i}" for i in range(20)]
    assert np.array_equal(grams(" ".join(words)), grams(";\n".join(words).upper()))
    assert not np.isin(grams(" ".join(words)), grams(" ".join(reversed(words)))).any()
    assert len(grams(" ".join(words[:13]))) == 1


def test_short_documents_are_copies_but_for_case_and_white_space():
    assert np.array_equal(grams("The  same\tline"), grams("the same LINE\n"))
    assert grams("3 + 4 = 7") != grams("3 - 4 = 7"), "other signs, another text"
    assert len(grams(" \n")) == 0


@pytest.mark.parametrize(
    "signs",
    ["\u4eba\u5de5\u667a\u80fd\u662f\u4e00\u95e8\u79d1\u5b66\u7684\u5206\u652f\u5462",
     "\u3042\u3044\u3046\u3048\u304a\u30ab\u30ad\u30af\u30b1\u30b3\u65e5\u672c\u8a9e",
     "\u0e01\u0e02\u0e03\u0e04\u0e05\u0e06\u0e07\u0e08\u0e09\u0e0a\u0e0b\u0e0c\u0e0d",
     "\U0001f600\U0001f601\U0001f602\U0001f603\U0001f604\U0001f605\U0001f606\U0001f607"
     "\U0001f608\U0001f609\U0001f60a\U0001f60b\U0001f60c"],
)  # fmt: skip
def test_scripts_without_spaces_have_a_word_for_each_sign(signs):
    """A copy with one sign more is a near copy, as in a script with spaces."""
    assert len(signs) == N_WORDS and len(grams(signs)) == 1
    assert np.isin(grams(signs), grams("\u4e00" + signs + "\u3002")).all()


def held_out_and_train(folder):
    """The files' names in the order in which the split takes them."""
    return sorted(folder.iterdir(), key=lambda path: document_hash(path.read_bytes()))


def plant(folder, share=1.0):
    """Copy a held-out document, with one word changed, to where its hash puts it into train."""
    leaked = held_out_and_train(folder)[0]
    text = leaked.read_text()
    text = text[: int(len(text) * share)]
    for i in range(1000):
        copy = folder / "copy.txt"
        copy.write_text(f"changed{i} {text}")
        if held_out_and_train(folder).index(copy) > 20:
            return leaked.name
    raise AssertionError


def test_a_planted_leak_stops_the_run_and_is_named(folder, data_config, tmp_path, recorder):
    config = data_config(folder)
    clean = prepare(config, tmp_path / "cache", recorder)
    assert clean.manifest["overlap"]["validation"]["measured"] == 0
    leaked = plant(folder)
    strict = data_config(folder, split={"max_overlap": 0.05})
    with pytest.raises(
        DataError, match=rf"max_overlap = 0\.05.*{leaked} \(100%\).*on_overlap=drop"
    ):
        prepare(strict, tmp_path / "cache", recorder)
    assert any(leaked in note for note in recorder.notes)


def test_dropping_leaves_the_leak_out_of_validation(folder, data_config, tmp_path, recorder):
    before = prepare(data_config(folder), tmp_path / "cache").manifest
    leaked = plant(folder)
    split = {"max_overlap": 0.05, "on_overlap": "drop"}
    data = prepare(data_config(folder, split=split), tmp_path / "cache", recorder)
    figures = data.manifest["overlap"]["validation"]
    assert figures["documents_dropped"] == 1
    assert figures["used"] == 0 < figures["measured"]
    assert figures["worst"] == [[leaked, 1.0]]
    n_documents = data.manifest["splits"]["validation"]["documents"]
    assert n_documents == before["splits"]["validation"]["documents"] - 1
    shards = data.split("validation")
    spans = zip(shards.starts[:-1], shards.starts[1:], strict=True)
    texts = {data.tokenizer.decode(shards.tokens[a : b - 1]) for a, b in spans}
    assert (folder / leaked).read_text() not in texts
    assert any("left out" in note for note in recorder.notes)


def test_the_limit_still_holds_after_dropping(folder, data_config, tmp_path):
    leaked = plant(folder, share=0.4)  # below the limit for one document
    split = {"max_overlap": 0.01, "on_overlap": "drop"}
    with pytest.raises(DataError, match=rf"{leaked}.*Lower data\.split\.max_document_overlap"):
        prepare(data_config(folder, split=split), tmp_path / "cache")


def test_dropping_everything_is_refused(tmp_path, data_config):
    root = tmp_path / "near_copies"
    root.mkdir()
    text = random_text(0)
    for i in range(30):
        (root / f"{i}.txt").write_text(f"number{i} {text}")
    with pytest.raises(DataError, match="all 6 overlap more"):
        prepare(data_config(root, split={"on_overlap": "drop"}), tmp_path / "cache")


def test_the_default_limit_catches_a_corpus_of_near_copies(tmp_path, data_config):
    root = tmp_path / "near_copies"
    root.mkdir()
    for i in range(30):
        (root / f"{i}.txt").write_text(f"number{i} {random_text(0)}")
    with pytest.raises(DataError, match=r"data\.split\.max_overlap"):
        prepare(data_config(root), tmp_path / "cache")


def test_documents_of_few_words_have_no_overlap(tmp_path, data_config):
    path = tmp_path / "digits.txt"
    path.write_text("".join(f"{i:05d}" for i in range(12000)))  # one word without end
    data = prepare(data_config(path, document="auto"), tmp_path / "cache")
    assert data.manifest["overlap"]["validation"]["measured"] == 0
