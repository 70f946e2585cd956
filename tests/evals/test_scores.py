"""Standard errors against textbook formulas and repeated draws."""

import math

import numpy as np
import pytest

from mixlab.evals.scores import clustered_share, ratio, share


def test_a_share_has_the_error_of_the_mean():
    hits = np.array([1, 0, 0, 1, 1, 0, 1, 1])
    found = share(hits)
    assert found.value == 5 / 8
    assert found.standard_error == pytest.approx(hits.std(ddof=1) / math.sqrt(8), rel=1e-12)


@pytest.mark.parametrize("outcome", [0, 1])
def test_cases_that_all_agree_are_not_certain(outcome):
    found = share(np.full(18, outcome))
    assert found.value == outcome
    assert found.standard_error == pytest.approx(math.sqrt(0.05 * 0.95 / 18), rel=1e-12)
    assert clustered_share(np.full((18, 4), outcome)) == found


def test_too_few_cases_have_no_error():
    assert share(np.array([1])).standard_error is None
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, None)
    assert math.isnan(ratio(np.zeros(2), np.zeros(2)).value)


def test_a_ratio_of_clusters_scatters_by_its_error():
    """Clusters of very different size, whose own mean differs more than chance within allows."""
    rng = np.random.default_rng(0)

    def draw():
        sizes = rng.integers(1, 40, 60)
        means = rng.normal(3.0, 0.5, 60)
        return ratio(sizes * means + rng.normal(0, 0.1, 60), sizes)

    draws = [draw() for _ in range(2000)]
    spread = np.std([d.value for d in draws])
    claimed = np.mean([d.standard_error for d in draws])
    # 2000 draws know their spread to 1.6 %; the delta method is low by some per cent at n = 60.
    assert claimed == pytest.approx(spread, rel=0.08)
    naive = np.mean([0.5 / math.sqrt(20 * 60)])
    assert claimed > 3 * naive  # tokens taken as independent would promise too much


def test_rows_that_answer_alike_count_once():
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.random((200, 1)) < 0.3, 5, axis=1)
    assert clustered_share(rows).standard_error == pytest.approx(
        share(rows[:, 0]).standard_error, rel=1e-12
    )
