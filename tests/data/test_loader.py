"""Batches: pure functions of (seed, position), windows that share nothing, hand cases."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.errors import DataError
from mixlab.data.batch import IGNORE, Batch
from mixlab.data.loader import Loader
from mixlab.data.permutation import Permutation
from mixlab.data.shards import TokenShards

EOS = 99


def shards_of(tmp_path, documents: list[list[int]]) -> TokenShards:
    stream = [token for document in documents for token in [*document, EOS]]
    starts = np.cumsum([0, *(len(d) + 1 for d in documents)])
    np.array(stream, dtype="<u2").tofile(tmp_path / "train.tokens.bin")
    starts.astype("<i8").tofile(tmp_path / "train.starts.bin")
    return TokenShards(tmp_path, "train", {"dtype": "<u2", "eos_id": EOS}, np.ones(100))


@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 5))
def test_the_order_is_a_bijection(n, seed, epoch):
    places = Permutation(n, seed, epoch)(np.arange(n))
    assert np.array_equal(np.sort(places), np.arange(n))


def test_the_order_depends_on_seed_and_epoch_and_looks_random():
    n = 1000
    orders = [Permutation(n, s, e)(np.arange(n)) for s, e in ((0, 0), (0, 1), (1, 0), (7, 3))]
    for i, a in enumerate(orders):
        # Neighbours are no more often neighbours again than in a random order (2 expected).
        assert (np.abs(np.diff(a)) == 1).sum() < 15
        # The rank correlation of random orders has a standard deviation of 0.03.
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.15
        for b in orders[:i]:
            assert (a == b).sum() < 15


def test_the_order_is_the_same_on_every_machine():
    assert Permutation(10, seed=0, epoch=0)(np.arange(10)).tolist() == [
        1,
        3,
        0,
        5,
        4,
        2,
        9,
        8,
        7,
        6,
    ]


def test_hand_case(tmp_path):
    shards = shards_of(tmp_path, [[1, 2], [3], [4, 5, 6, 7, 8]])  # 1 2 E 3 E 4 5 6 7 8 E
    loader = Loader(shards, seq_len=5, seed=0)
    assert loader.n_windows == 2
    (batch,) = loader.window_batches(2, batch_size=4)
    assert batch.tokens.tolist() == [[1, 2, EOS, 3, EOS], [4, 5, 6, 7, 8]]
    assert batch.targets.tolist() == [[2, EOS, 3, EOS, 4], [5, 6, 7, 8, EOS]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert (batch.tokens.dtype, batch.targets.dtype) == (torch.int64, torch.int64)
    assert batch.segments.dtype == torch.int32
    assert batch.n_targets() == 10


def test_segments_agree_with_the_recorded_document_starts(prepared):
    shards = prepared.split("train")
    loader = Loader(shards, prepared.seq_len, seed=0)
    for w, batch in enumerate(loader.window_batches(loader.n_windows, 1)):
        positions = np.arange(w * prepared.seq_len, (w + 1) * prepared.seq_len)
        document = np.searchsorted(shards.starts, positions, side="right")
        assert np.array_equal(batch.segments[0].numpy(), document - document[0])


def test_a_batch_is_the_concatenation_of_its_positions(prepared):
    loader = Loader(prepared.split("train"), 16, seed=3)
    first = 2 * loader.n_windows - 3  # the batch lies across the border of two epochs
    whole = loader.batch(first, 8)
    singles = [loader.batch(first + i, 1) for i in range(8)]
    again = Loader(prepared.split("train"), 16, seed=3).batch(first, 8)
    for part, rows, twin in zip(whole, zip(*singles, strict=True), again, strict=True):
        if part is None:  # no prefix in plain text
            assert set(rows) == {twin} == {None}
            continue
        assert torch.equal(part, torch.cat(rows))
        assert torch.equal(part, twin)
    assert not torch.equal(whole.tokens, Loader(prepared.split("train"), 16, 4).batch(first, 8)[0])


def test_each_token_is_a_target_at_most_once_per_epoch(tmp_path):
    """Tokens numbered by place show which place of the stream each target is."""
    tokens = np.arange(1003, dtype="<u2")
    tokens.tofile(tmp_path / "train.tokens.bin")
    np.array([0, 1003], dtype="<i8").tofile(tmp_path / "train.starts.bin")
    shards = TokenShards(tmp_path, "train", {"dtype": "<u2", "eos_id": 65535}, np.ones(1003))
    loader = Loader(shards, seq_len=10, seed=1)
    assert loader.n_windows == 100
    for epoch in range(2):
        batch = loader.batch(epoch * loader.n_windows, loader.n_windows)
        counts = Counter(batch.targets.ravel().tolist())
        assert set(counts.values()) == {1}
        assert set(counts) == set(range(1, 1001))
        assert torch.equal(batch.targets, batch.tokens + 1)


def test_the_stride_cannot_be_chosen():
    with pytest.raises(TypeError):
        Loader(SimpleNamespace(), 8, seed=0, stride=1)


def test_too_few_sequences_are_refused_with_figures(tmp_path):
    shards = shards_of(tmp_path, [[1, 2], [3]])
    with pytest.raises(DataError, match=r"5 tokens.*0 sequences of data.seq_len = 5.*6 tokens"):
        Loader(shards, seq_len=5, seed=0)
    with pytest.raises(DataError, match="3 are needed"):
        list(Loader(shards, seq_len=2, seed=0).window_batches(3, 1))


def test_targets_that_are_ignored_do_not_count():
    targets = torch.tensor([[1, IGNORE], [IGNORE, 2]])
    batch = Batch(targets, targets, torch.zeros(2, 2, dtype=torch.int32))
    assert batch.n_targets() == 2
    assert batch.to("cpu").n_targets() == 2


def test_no_held_out_text_is_in_the_training_stream(prepared):
    texts = {}
    for name in ("train", "validation", "test"):
        shards = prepared.split(name)
        spans = zip(shards.starts[:-1], shards.starts[1:], strict=True)
        texts[name] = {prepared.tokenizer.decode(shards.tokens[a : b - 1]) for a, b in spans}
        assert all(shards.tokens[b - 1] == shards.eos_id for b in shards.starts[1:])
    whole_train = "\0".join(texts["train"])
    for text in texts["validation"] | texts["test"]:
        assert text not in whole_train
    assert json.dumps(prepared.manifest)  # plain data
