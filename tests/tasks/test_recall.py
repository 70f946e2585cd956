"""Associative recall: what a dictionary answers, pure draws, levels of guessing."""

import numpy as np
import pytest

from mixlab.core.errors import DataError, LabError
from mixlab.tasks.names import named_task
from mixlab.tasks.recall import BLANK, IGNORE, Recall

TASK = Recall(n_pairs=6, n_queries=3, n_keys=20, n_values=5)


def test_rows_are_what_a_dictionary_answers():
    rows = TASK.rows(0, np.arange(50))
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist(), strict=True):
        pairs = dict(zip(tokens[:12:2], tokens[1:12:2], strict=True))
        assert len(pairs) == 6
        asked = tokens[12::2]
        assert len(set(asked)) == 3
        assert [pairs[key] for key in asked] == tokens[13::2] == targets[12::2]
        assert set(targets[:12] + targets[13::2]) == {IGNORE}


def test_a_row_depends_on_seed_and_index_alone():
    whole = TASK.rows(4, np.arange(10)).tokens
    assert np.array_equal(TASK.rows(4, np.array([7, 2])).tokens, whole[[7, 2]])
    assert not np.array_equal(TASK.rows(5, np.arange(10)).tokens, whole)
    assert np.array_equal(TASK.example(4, 7).answer, whole[7])


def test_levels_of_guessing():
    rows = TASK.rows(1, np.arange(4000))
    answers = rows.targets[:, 12::2]
    rng = np.random.default_rng(0)
    seen = np.take_along_axis(rows.tokens[:, 1:12:2], rng.integers(0, 6, answers.shape), axis=1)
    # Four standard errors of a share of 12,000 answers.
    assert abs((seen == answers).mean() - TASK.guess_seen) < 4 * (0.25 / 12_000) ** 0.5
    counts = np.bincount(answers.ravel(), minlength=TASK.vocab_size)[TASK.first_value :]
    assert counts.sum() == 12_000
    assert abs(counts / 12_000 - TASK.chance).max() < 4 * (0.16 / 12_000) ** 0.5


def test_questions_that_have_no_answer_are_refused():
    question = TASK.example(0, 0).question
    twice = question.copy()
    twice[2] = twice[0]
    with pytest.raises(DataError, match="has no one answer: expected different keys"):
        TASK.solve(twice)
    filled = question.copy()
    filled[1] = BLANK
    with pytest.raises(DataError, match="expected 6 rows of a key and a value"):
        TASK.solve(filled)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(LabError, match="n_pairs = 30: expected at most n_keys = 26"):
        named_task("recall-30-pairs-4-queries-26-10")
    with pytest.raises(LabError, match="n_queries = 9: expected at most n_pairs = 8"):
        named_task("recall-8-pairs-9-queries-26-10")
