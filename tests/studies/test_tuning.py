"""The search for a rate, on curves whose optimum is known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlab.studies.tuning import DIVERGED, outcome, scaled, search, with_rate


def run_search(curve, max_runs: int = 9):
    """Follow the search to its end; returns (search, what was tried in order)."""
    tried: dict[int, float | None] = {}
    while True:
        state = search(tried, max_runs=max_runs)
        if not state.wanted:
            return state, tried
        for index in state.wanted:
            assert index not in tried, "nothing is tried twice"
            tried[index] = curve(index)


@given(st.floats(-7.0, 7.0))
def test_the_optimum_of_a_u_curve_is_found_to_a_quarter_octave(optimum):
    """`optimum` in half octaves; the search may end at most half a grid step away from it."""
    state, tried = run_search(lambda i: (i - optimum) ** 2, max_runs=20)
    assert state.status == "interior"
    assert abs(state.best - optimum) <= 0.5 + 1e-9
    assert {state.best - 1, state.best + 1} & set(tried), "it was refined"
    assert min(tried) < state.best < max(tried), "the best lies inside"


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=61, max_size=61), st.integers(4, 20))
def test_any_curve_ends_and_names_its_best(values, max_runs):
    """However rough: few runs, nothing tried twice, and the best is the lowest of all."""
    state, tried = run_search(lambda i: values[i + 30], max_runs=max_runs)
    assert len(tried) <= max(5, max_runs + 2)
    assert tried[state.best] == min(tried.values())
    if state.status == "interior":
        assert min(tried) < state.best < max(tried) or tried[state.best] == min(tried.values())


def test_an_interrupted_search_goes_on_alike():
    """Every prefix of what was tried leads to the same end."""
    curve = {i: abs(i - 4.2) for i in range(-30, 31)}
    whole, tried = run_search(curve.__getitem__)
    for n in range(len(tried)):
        part = dict(list(tried.items())[:n])
        while (state := search(part, max_runs=9)).wanted:
            part.update({index: curve[index] for index in state.wanted})
        assert part == tried and state == whole


def test_a_curve_that_only_falls_ends_at_the_edge():
    state, tried = run_search(lambda i: -float(i))
    assert state.status == "edge" and state.best == max(tried) and len(tried) == 9


def test_divergence_bounds_the_bracket():
    """The best rate is the highest that does not blow up: that is an optimum, not an edge."""
    state, _ = run_search(lambda i: -float(i) if i <= 3 else DIVERGED)
    assert state.status == "interior" and state.best == 3


def test_where_everything_diverges_the_search_goes_down():
    state, tried = run_search(lambda i: (i + 10) ** 2 if i < -4 else DIVERGED)
    assert state.status == "interior" and state.best == -10
    state, tried = run_search(lambda i: DIVERGED)
    assert state.status == "failed" and state.best is None and len(tried) == 9


def test_a_run_that_failed_ends_the_search():
    state, tried = run_search(lambda i: None if i == 2 else 1.0)
    assert state.status == "failed" and set(tried) == {-2, 0, 2}


def test_all_rates_of_an_optimizer_are_scaled_together():
    config = {"train": {"optimizer": {"kind": "muon", "lr": 0.005, "rest": {"lr": 0.003}}, "x": 1}}
    double = with_rate(config, 2)
    assert double["train"]["optimizer"] == {"kind": "muon", "lr": 0.01, "rest": {"lr": 0.006}}
    assert config["train"]["optimizer"]["lr"] == 0.005, "the base is not changed"
    assert with_rate(config, 0) is config
    root = with_rate(config, 1)["train"]["optimizer"]["lr"]
    assert root == pytest.approx(0.005 * math.sqrt(2), rel=1e-6)
    assert len(f"{root:.10g}") <= 10, "what is printed is what is used"


def test_scaling_there_and_back_is_exact_by_octaves():
    assert scaled(scaled(0.0003, 4), -4) == 0.0003


def test_outcomes():
    done = {"status": "done", "value": 3.0, "error": None}
    assert outcome(done, lower_is_better=True) == 3.0
    assert outcome(done, lower_is_better=False) == -3.0
    diverged = {"status": "failed", "value": None, "error": {"kind": "diverged"}}
    assert outcome(diverged, lower_is_better=True) == DIVERGED
    bug = {"status": "failed", "value": None, "error": {"kind": "bug"}}
    assert (
        outcome(bug, lower_is_better=True) is None and outcome(None, lower_is_better=True) is None
    )
