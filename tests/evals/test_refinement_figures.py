"""Figures of halting against hand cases and a brute-force rank statistic."""

import numpy as np
import pytest

from mixlab.evals.refinement import (
    at_exit,
    auroc,
    calibration_error,
    choose_threshold,
    exit_steps,
    halting_figures,
)

RIGHT = np.array([[0, 1, 0, 1], [1, 1, 0, 0]], bool)
SCORES = np.array([[-1.0, 2.0, 1.0, -2.0], [3.0, 2.5, -1.0, 1.0]])


def test_auroc_is_the_chance_that_right_outranks_wrong():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 5, 40) / 2, rng.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[right] for b in scores[~right]]
    assert auroc(scores, right) == pytest.approx(np.mean(pairs))
    assert auroc(scores, np.ones(40, bool)) is None


def test_halting_by_hand():
    row = halting_figures(RIGHT, SCORES, 1)
    assert row["premature_halt_rate"] == 2 / 8 and row["late_halt_rate"] == 1 / 8
    assert row["q_halt_accuracy"] == 5 / 8
    seen = {name.removeprefix("eval_counterfactual/"): row[name] for name in row}
    assert seen["halt_histogram"] == [2, 2] and seen["reasoning_steps"] == 1.5
    assert seen["exact_accuracy"] == 2 / 4 and seen["forced_halt_rate"] == 0


def test_exits():
    assert exit_steps(SCORES, 0.0, 2).tolist() == [2, 2, 2, 2]
    exits = exit_steps(SCORES, 1.5, 1)
    assert exits.tolist() == [2, 1, 2, 2]
    assert at_exit(RIGHT, exits).tolist() == [True, True, False, False]


def test_the_threshold_holds_its_budget_with_the_fewest_segments():
    right = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)
    scores = np.array([[1.0, 3.0, 3.0, 3.0], [9.0, 9.0, 9.0, 9.0]])
    threshold, curve = choose_threshold(right, scores, min_steps=1, max_drop=0.0)
    assert threshold == 1.0
    assert choose_threshold(right, scores, min_steps=1, max_drop=0.25)[0] < 1.0
    assert [point["reasoning_steps"] for point in curve] == sorted(
        point["reasoning_steps"] for point in curve
    )


def test_calibration_error_by_hand():
    probability, right = np.array([0.95, 0.95, 0.15, 0.15]), np.array([1, 0, 0, 0])
    assert calibration_error(probability, right) == pytest.approx((0.45 + 0.15) / 2)
