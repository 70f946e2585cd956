"""The split: a pure function of the set of contents."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError
from mixlab.data.config import SplitConfig
from mixlab.data.snapshot import document_hash
from mixlab.data.split import split_documents

CONTENTS = st.sets(st.binary(min_size=1, max_size=60), min_size=12, max_size=60)
NO_MINIMUM = SplitConfig(min_validation_tokens=0)


def split_contents(contents: list[bytes], config=NO_MINIMUM) -> dict[str, set[bytes]]:
    order = np.array(sorted(range(len(contents)), key=lambda i: document_hash(contents[i])))
    sizes = np.array([len(c) for c in contents])
    split = split_documents(config, order, sizes)
    return {name: {contents[i] for i in getattr(split, name)} for name in split._fields}


@given(CONTENTS, st.randoms(use_true_random=False))
def test_it_depends_on_the_set_of_contents_only(contents, generator):
    listed = sorted(contents)
    shuffled = list(listed)
    generator.shuffle(shuffled)
    try:
        first = split_contents(listed)
    except DataError:  # one document may outweigh all others; that is refused either way
        with pytest.raises(DataError):
            split_contents(shuffled)
        return
    assert first == split_contents(shuffled)


@given(CONTENTS)
def test_the_splits_cover_all_documents_and_share_none(contents):
    try:
        split = split_contents(sorted(contents))
    except DataError:
        return
    assert sum(len(part) for part in split.values()) == len(contents)
    assert set.union(*split.values()) == contents
    assert all(split.values())


def test_held_out_fractions_are_reached_and_hardly_exceeded():
    contents = [hashlib.sha256(str(i).encode()).digest() * 10 for i in range(1000)]
    split = split_contents(contents)
    assert len(split["validation"]) == 50
    assert len(split["test"]) == 50


def test_validation_grows_to_its_number_of_tokens_but_not_beyond_a_fifth():
    contents = [hashlib.sha256(str(i).encode()).digest() * 10 for i in range(1000)]  # 320 kB
    split = split_contents(contents, SplitConfig(min_validation_tokens=6_400))  # 32 kB by estimate
    assert len(split["validation"]) == 100
    split = split_contents(contents, SplitConfig(min_validation_tokens=10**9))
    assert len(split["validation"]) == 200


def test_a_document_keeps_its_split_when_a_few_others_are_added():
    contents = [hashlib.sha256(str(i).encode()).digest() * 10 for i in range(1000)]
    before = split_contents(contents[:980])
    after = split_contents(contents)
    # The lowest hashes stay the lowest: only documents at the two thresholds can move.
    moved = sum(len(before[name] - after[name]) for name in before)
    assert moved <= 6


@pytest.mark.parametrize("n_documents", [1, 2])
def test_too_few_documents_are_refused(n_documents):
    with pytest.raises(DataError, match=r"passage_bytes"):
        split_contents([bytes([i]) * 100 for i in range(n_documents)])


@pytest.mark.parametrize("seed", range(4))
def test_one_document_that_is_most_of_the_text_is_trained_on(seed):
    sizes = np.array([400] * 300 + [2_500_000])
    order = np.random.default_rng(seed).permutation(301)
    split = split_documents(decode(SplitConfig, {}), order, sizes)
    assert 300 in split.train and len(split.validation) and len(split.test)
    assert sorted(np.concatenate(split)) == list(range(301))
    held_out = [i for i in order if i != 300][: len(split.validation) + len(split.test)]
    assert [*split.validation, *split.test] == held_out, "dealt out by hash as always"


def test_holding_out_more_than_half_is_refused():
    with pytest.raises(ConfigError, match="at most half"):
        decode(SplitConfig, {"validation_frac": 0.4, "test_frac": 0.2})


def test_there_is_no_other_way_to_split():
    """Windows with a stride, and a random split, cannot be asked for."""
    for key in ("stride", "seed", "shuffle", "by", "random"):
        with pytest.raises(ConfigError, match="known key"):
            decode(SplitConfig, {key: 1})
