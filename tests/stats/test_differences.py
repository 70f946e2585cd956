"""Paired differences against scipy and statsmodels, and where too little is known to say much."""

import math

import numpy as np
import pandas
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from statsmodels.stats.multitest import multipletests

from mixlab.stats import DocumentLosses, compare_arms
from mixlab.stats.arms import holm
from mixlab.stats.differences import difference, residual


def runs(values):
    return dict(enumerate(values, start=1))


def draw(n_arms, n_seeds, seed=0):
    rng = np.random.default_rng(seed)
    return {f"arm{i}": runs(rng.normal(4, 0.1, n_seeds).tolist()) for i in range(n_arms)}


@pytest.mark.parametrize("n", [2, 3, 7, 9])
def test_a_pair_is_scipys_paired_t_test(n):
    arms = draw(2, n)
    a, b = (np.array(list(v.values())) for v in arms.values())
    found = difference(arms["arm0"], arms["arm1"], alpha=0.05, study=residual(arms))
    stock = scipy.stats.ttest_rel(a, b)
    assert found.mean == pytest.approx((a - b).mean())
    # Same formula, other order of sums.
    assert found.p == pytest.approx(stock.pvalue, rel=1e-9)
    if n < 8:
        low, high = stock.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert found.method == ("paired t" if n < 8 else "bootstrap over seeds")


def test_only_seeds_that_both_have_are_paired():
    first, second = {1: 1.0, 2: 2.0, 3: 4.0, 9: 100.0}, {1: 0.5, 2: 1.0, 3: 3.5, 8: -7.0}
    found = difference(first, second, alpha=0.05)
    assert found.seeds == (1, 2, 3) and found.n == 3
    assert found.mean == pytest.approx((0.5 + 1.0 + 0.5) / 3)


def test_arms_without_a_common_seed_are_compared_by_welch():
    x, y = [1.0, 2.0, 4.0], [2.5, 2.0, 3.0, 9.0]
    found = difference(runs(x), {seed + 10: v for seed, v in enumerate(y)}, alpha=0.05)
    stock = scipy.stats.ttest_ind(x, y, equal_var=False)
    assert found.p == pytest.approx(stock.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(stock.confidence_interval()), rel=1e-9)
    assert "not paired" in found.method and found.seeds == ()


def test_one_seed_says_the_mean_and_no_more():
    found = compare_arms({"a": {1: 4.0}, "b": {1: 5.0}})
    pair = found.pair("b", "a")
    assert pair.difference.mean == 1.0
    assert pair.difference.low is pair.difference.p is pair.p_holm is None
    assert not pair.is_different and len(found.groups) == 1 and found.residual_sd is None
    assert found.arm("a").sd is None


def test_the_noise_of_the_study_is_the_residual_of_arm_and_seed():
    """Held to statsmodels, with runs missing here and there."""
    arms = draw(4, 5, seed=3)
    del arms["arm1"][2], arms["arm3"][5]
    rows = [(a, s, y) for a, values in arms.items() for s, y in values.items()]
    data = {name: [row[i] for row in rows] for i, name in enumerate(("arm", "seed", "y"))}
    stock = smf.ols("y ~ C(arm) + C(seed)", pandas.DataFrame(data)).fit()
    found = residual(arms)
    assert found.df == stock.df_resid
    assert found.sd == pytest.approx(math.sqrt(stock.mse_resid), rel=1e-9)


def test_a_pair_takes_the_larger_of_its_own_error_and_the_studys():
    quiet = {"a": runs([1.0, 2.0, 3.0]), "b": runs([1.5, 2.5, 3.501])}
    alone = difference(quiet["a"], quiet["b"], alpha=0.05, study=residual(quiet))
    noisy = {**quiet, "c": runs([2.0, 0.0, 9.0])}
    study = residual(noisy)
    together = difference(quiet["a"], quiet["b"], alpha=0.05, study=study)
    assert together.se == pytest.approx(study.sd * math.sqrt(2 / 3)) and together.se > alone.se
    assert difference(quiet["a"], noisy["c"], alpha=0.05, study=study).se > together.se


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(0).uniform(size=40) ** 4
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), rel=1e-12)
    assert holm([]) == []


def test_a_pair_is_turned_round():
    found = compare_arms(draw(3, 4))
    there, back = found.pair("arm0", "arm2"), found.pair("arm2", "arm0")
    assert there.difference.mean == -back.difference.mean
    assert (there.difference.low, there.difference.high) == (
        -back.difference.high,
        -back.difference.low,
    )
    assert there.p_holm == back.p_holm
    with pytest.raises(KeyError):
        found.pair("arm0", "arm0")


def test_higher_may_be_better():
    values = {"bad": runs([0.1, 0.2]), "good": runs([0.8, 0.9])}
    assert [arm.name for arm in compare_arms(values, lower_is_better=False).arms] == ["good", "bad"]


def test_equal_and_perfectly_repeated_runs_have_no_error():
    same = compare_arms({"a": runs([1.0, 2.0]), "b": runs([1.0, 2.0])}).pair("a", "b")
    assert same.difference.p == 1.0 and not same.is_different
    shifted = compare_arms({"a": runs([1.0, 2.0]), "b": runs([1.5, 2.5])}).pair("a", "b")
    assert shifted.difference.p < 1e-12 and shifted.is_different


def test_bootstrap_interval_over_seeds_is_as_wide_as_a_t_interval():
    """Plain percentiles over 8 seeds would be a fifth too narrow."""
    arms = draw(2, 8, seed=5)
    found = difference(arms["arm0"], arms["arm1"], alpha=0.05, n_boot=40_000)
    a, b = (np.array(list(v.values())) for v in arms.values())
    low, high = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    # 10 %: these eight differences are not quite normal, and the draws are random.
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)


def test_documents_widen_the_interval_where_they_disagree():
    """Arms differ on every second document only: another set could show another difference."""
    rng = np.random.default_rng(0)
    n_targets = np.full(20, 100.0)
    shift = np.where(np.arange(20) % 2, 20.0, -10.0)
    values, documents = {"a": {}, "b": {}}, {"a": {}, "b": {}}
    for seed in range(8):
        base = 400 + rng.normal(0, 1, 20)
        for name, nats in (("a", base), ("b", base + shift + rng.normal(0, 1, 20))):
            values[name][seed] = float(nats.sum() / n_targets.sum())
            documents[name][seed] = DocumentLosses(nats, n_targets)
    plain = compare_arms(values).pair("b", "a")
    found = compare_arms(values, documents=documents, n_boot=4000).pair("b", "a")
    assert found.difference.method == "bootstrap over seeds, then documents"
    # The spread of a mean over 20 documents of sd 15 nats in 100 targets each; 8 seeds add little.
    assert found.difference.se == pytest.approx(0.15 / math.sqrt(20), rel=0.15)
    assert found.difference.se > 5 * plain.difference.se
    assert found.difference.low < 0.05 < found.difference.high
