"""Exports against the stock classes, loaded by plain transformers in a process without mixlab."""

import os

import pytest
from byte_tokens import byte_tokenizer
from stock_examples import EXAMPLES, random_model

pytest.importorskip("transformers", reason="it is the judge")
from mixlab.core.recipes import list_recipes
from mixlab.export import parity
from mixlab.export.stock_files import stock_tensors, write_model
from mixlab.export.verdict import verdict
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.smoke import shrink
from mixlab.nn.language_model import LanguageModelConfig

LIMIT = 1e-4
"""Float32 sums in another order err by some 1e-6 of logits of about 1."""


def measure(models: dict[str, dict], folder) -> dict[str, dict]:
    """Export every model, and have them all measured by one process."""
    jobs = []
    for i, settings in enumerate(models.values()):
        model = random_model(settings)
        target = verdict(model.cfg).target
        place = folder / f"export-{i}"
        place.mkdir()
        tensors = stock_tensors(target, model)
        write_model(place, target, model.cfg, tensors, "float32", byte_tokenizer(), None)
        reference = folder / f"reference-{i}.safetensors"
        jobs.append(parity.prepare(place, model, None, reference))
    found = parity.measure(jobs, folder, {**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(zip(models, found, strict=True))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """With fewer tokens than users get, which are still more than three windows."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "N_TOKENS", 24)
        patch.setattr(parity, "N_NEW", 6)
        return measure({name: settings for name, (_, settings) in EXAMPLES.items()}, folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_stock_class_computes_the_same(measured, name):
    found = measured[name]
    assert "error" not in found, found["error"]
    assert found["largest_logit_difference"] <= LIMIT
    assert found["largest_logit"] > 0.1, "logits too small to tell models apart"
    assert found["greedy_equal"] == found["greedy_prompts"]
    if name == "Qwen3.5, Gated DeltaNet alone":
        assert found["cached_against_uncached"] is None
    else:
        assert found["cached_against_uncached"] <= LIMIT


def exportable() -> dict[str, dict]:
    """Every packaged recipe that has a stock architecture, at a fraction of its size."""
    found = {}
    for recipe in list_recipes():
        config = load_config(recipe.name)
        if isinstance(config, RunConfig) and verdict(config.model).target is not None:
            found[recipe.name] = shrink(config).model.model_dump(mode="json")
    return found


@pytest.mark.slow
def test_every_exportable_recipe(tmp_path):
    recipes = exportable()
    assert len(recipes) >= 13
    for name, found in measure(recipes, tmp_path).items():
        assert "error" not in found, (name, found["error"])
        assert found["largest_logit_difference"] <= LIMIT, name
        assert found["greedy_equal"] == found["greedy_prompts"], name


def test_shrinking_keeps_the_verdict():
    """So that the slow test above is about the recipes."""
    for recipe in list_recipes():
        config = load_config(recipe.name)
        if isinstance(config, RunConfig):
            small = LanguageModelConfig(**shrink(config).model.model_dump(mode="json"))
            assert verdict(config.model).target == verdict(small).target, recipe.name
