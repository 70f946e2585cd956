"""Recipes: packaged ones, files, one that extends another, presets."""

import pytest

from mixlab.core.errors import LabError
from mixlab.core.recipes import list_presets, list_recipes, load_preset, load_recipe
from mixlab.jobs.config import load_config


def test_every_packaged_recipe_is_valid_and_says_what_it_is():
    found = list_recipes()
    assert "quickstart" in {recipe.name for recipe in found}
    for name, about in found:
        assert about, name
        assert load_config(name).name == name


@pytest.mark.parametrize("preset", list_presets("data"))
def test_every_data_preset_fits_the_quickstart(preset):
    assert (
        load_config("quickstart", [f"data={preset}"]).data
        == load_config("quickstart", [f"data={preset}"]).data
    )
    assert (
        load_preset("data", preset)["corpus"]["kind"]
        == load_config("quickstart", [f"data={preset}"]).data.corpus.kind
    )


def test_an_unknown_preset_and_recipe():
    with pytest.raises(LabError, match="expected one of"):
        load_preset("data", "nothing")
    with pytest.raises(LabError, match="Did you mean 'quickstart'"):
        load_recipe("quickstrat")


def test_a_file_extends_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\ntrain: {batch_size: 3}\n")
    tree, base = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("quickstart")
    assert tree["name"] == "mine" and "extends" not in tree
    assert tree["train"] == {**base["train"], "batch_size": 3}
    assert tree["model"] == base["model"]


def test_a_circle_of_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(LabError, match="in a chain"):
        load_recipe("a.yaml")
    (tmp_path / "c.yaml").write_text("extends: [a]\n")
    with pytest.raises(LabError, match="expected the name of a recipe"):
        load_recipe("c.yaml")


@pytest.mark.parametrize("text", ["[1]", "a", "", "a: [", "\x00"])
def test_files_that_are_no_recipes(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(LabError, match=r"bad\.yaml"):
        load_recipe(str(tmp_path / "bad.yaml"))
