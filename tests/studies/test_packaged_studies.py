"""The packaged studies mean what they say: arms that differ, sizes and lengths that match."""

import pytest

from mixlab.core.units import count
from mixlab.jobs.kinds import kind_of
from mixlab.studies import design as designs
from mixlab.studies.design import design
from mixlab.studies.sizes import budget_of
from mixlab.studies.study_file import load_study, packaged_studies

NAMED = {  # arms of the published design that are different models
    "gdn-lr": 5, "hybrid-lr": 9, "hybrid-patterns": 13, "attention-placement": 3,
    "deepseek-components": 4, "moe-ablations": 14, "recursion-ablations": 13, "recall": 9,
}  # fmt: skip


@pytest.fixture
def settled(monkeypatch):
    """A packaged study with every arm settled; no text is read for it."""
    monkeypatch.setattr(
        designs, "_prepare_data", lambda found, arm, screen: found.manifests.setdefault("", {})
    )

    def settle(name, is_smoke):
        return design(load_study(name), is_smoke=is_smoke, screen=None)

    return settle


def check(found):
    """Sizes and lengths by the formulas of the models, not by what the design says it reached."""
    study = found.study
    configs = [arm.config for arm in found.arms.values()]
    steps = [int(config.train.length.amount) for config in configs]
    tokens = [n * config.tokens_per_step for n, config in zip(steps, configs, strict=True)]
    budgets = [budget_of(config) for config in configs]
    rates = [kind_of(config).flops_per_token(config) for config in configs]
    spent = {
        "steps": steps,
        "tokens": tokens,
        "flops": [n * rate for n, rate in zip(tokens, rates, strict=True)],
        "params": [budget.n_params for budget in budgets],
        "active_params": [budget.n_active_params for budget in budgets],
    }
    for quantity in study.match:
        least, most = min(spent[quantity]), max(spent[quantity])
        assert most / least <= 1.01, f"{quantity} from {count(least)} to {count(most)}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.endswith("-as-published") else ())
        for name in packaged_studies()
    ],
)
def test_smoke_size(settled, name):
    found = settled(name, True)
    check(found)
    assert max(budget_of(arm.config).n_params for arm in found.arms.values()) < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", packaged_studies())
def test_full_size(settled, name):
    check(settled(name, False))


@pytest.mark.parametrize("name", NAMED)
def test_published_and_honest_form(name):
    published, honest = load_study(f"{name}-as-published"), load_study(name)
    assert published.published and len(published.seeds) == 1 and published.tune is None
    assert not honest.published and len(honest.seeds) >= 5
    rates_are_the_arms = any("optimizer.lr" in key for key in honest.grid)
    assert (honest.tune is not None) != rates_are_the_arms
    assert len(designs.arm_specs(published)) == NAMED[name]
    for study in (published, honest):
        assert len(study.about) > 150, "says what is asked and what the published answer got wrong"
