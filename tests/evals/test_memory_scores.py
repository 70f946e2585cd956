"""Recall and needles: a model that can only copy finds all, one that knows nothing guesses."""

import numpy as np
import pytest
from byte_tokens import byte_tokenizer
from copying_model import CopyingModel

from mixlab.core.errors import LabError
from mixlab.evals.needle import BEFORE, Needle, prompts, score_needle
from mixlab.evals.recall import score_recall
from mixlab.evals.words import word_tokens
from mixlab.tasks.recall import Recall

TASK = Recall(n_pairs=6, n_queries=3, n_keys=12, n_values=5)
POOL = np.arange(40, 90)
SETTINGS = {"n": 12, "n_choices": 5, "seed": 3}


def test_copying_recalls_everything():
    found = score_recall(CopyingModel(100), TASK, POOL, seed=0, n_rows=10)
    assert [(s.metric, s.value, s.n) for s in found.scores] == [("recall", 1, 30), ("exact", 1, 30)]
    assert found.scores[0].chance == 1 / 5 and found.scores[1].chance == 1 / 100
    assert found.guess_seen == pytest.approx(1 / 6 + 5 / 6 / 5)


def test_knowing_nothing_recalls_by_chance():
    """Equal logits take the first value, which is the right one as often as any other."""
    found = score_recall(CopyingModel(100, copies=False), TASK, POOL, seed=0, n_rows=600)
    score = found.scores[0]
    assert abs(score.value - score.chance) < 4 * score.standard_error
    # Queries of a row share its values, so the error is near that of 1800 independent ones.
    assert score.standard_error == pytest.approx((0.2 * 0.8 / 1800) ** 0.5, rel=0.15)


def test_batches_do_not_change_recall():
    whole = score_recall(CopyingModel(100), TASK, POOL, seed=1, n_rows=7)
    assert score_recall(CopyingModel(100), TASK, POOL, seed=1, n_rows=7, batch_tokens=40) == whole


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_stands_at_its_depth(depth):
    tokenizer = byte_tokenizer()
    hay, pool = np.arange(65, 91).repeat(40), np.arange(10, 30)
    rows, choices, places = prompts(
        tokenizer, hay, pool, Needle(120, depth), n=4, n_choices=5, seed=0
    )
    before = tokenizer.encode(BEFORE)
    n_hay = 120 - 2 * len(before) - 3
    for row, candidates, right in zip(
        rows.tolist(), choices.tolist(), places.tolist(), strict=True
    ):
        assert len(row) == 120 and row[-len(before) :] == before
        place = round(depth * n_hay)
        assert row[place : place + len(before) + 1] == [*before, candidates[right]]
        assert len(set(candidates)) == 5


def test_copying_finds_needles_and_knowing_nothing_guesses():
    tokenizer, hay = byte_tokenizer(), np.arange(65, 91).repeat(40)
    pool, vocab = np.arange(10, 30), tokenizer.vocab_size
    for needle in (Needle(60, 0.0), Needle(100, 0.5)):
        copying = CopyingModel(vocab)
        found = score_needle(copying, tokenizer, hay, pool, needle, **SETTINGS)
        assert (found.value, found.n, found.chance) == (1.0, 12, 0.2)
    blind = CopyingModel(vocab, copies=False)
    many = {**SETTINGS, "n": 600}
    found = score_needle(blind, tokenizer, hay, pool, Needle(60, 0.5), **many)
    assert abs(found.value - found.chance) < 4 * found.standard_error


def test_needles_that_do_not_fit_are_refused():
    tokenizer, hay, pool = byte_tokenizer(), np.arange(65, 91), np.arange(10, 30)
    model = CopyingModel(tokenizer.vocab_size)
    with pytest.raises(LabError, match="needle length = 20: expected at least 41 tokens"):
        score_needle(model, tokenizer, hay, pool, Needle(20, 0.5), **SETTINGS)
    with pytest.raises(LabError, match="expected at most the validation split's 26 tokens"):
        score_needle(model, tokenizer, hay, pool, Needle(300, 0.5), **SETTINGS)


def test_words_are_taken_where_there_are_enough():
    tokenizer = byte_tokenizer()
    assert len(word_tokens(tokenizer, 50)) >= 50
    with pytest.raises(LabError, match="expected at least 5000 for this test"):
        word_tokens(tokenizer, 5000)
