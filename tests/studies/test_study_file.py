"""Study files: short forms, arms and grids, and what is refused before anything runs."""

import pytest

from mixlab.core.config import decode, parse_yaml
from mixlab.core.errors import ConfigError, LabError
from mixlab.studies.arms import arm_specs
from mixlab.studies.metrics import find_metric, metric_names, metric_value
from mixlab.studies.study_file import (
    StudyFile,
    load_study,
    packaged_studies,
    smoke_study,
)

GRID = "{train.optimizer.lr: [0.001, 0.002]}"


def study(text: str) -> StudyFile:
    tree = parse_yaml(text, "the test")
    return decode(StudyFile, {"name": "test", "base": "quickstart", **tree})


def test_short_forms():
    found = study(
        f"{{grid: {GRID}, match: flops, budget: 2M tokens, seeds: 3, tune: learning_rate}}"
    )
    assert found.match == ["flops"] and found.matched_length == "flops"
    assert str(found.budget.per_run) == "2M tokens" and found.budget.total is None
    assert found.seeds == [1, 2, 3] and found.tune is not None
    assert found.tuning_seeds == [4], "a seed that ranks nothing"
    assert study(f"{{grid: {GRID}, match: params}}").matched_length == "tokens"


def test_a_grid_has_every_combination():
    specs = arm_specs(study("{grid: {model.a: [1, 2, 3], model.b: [x, y]}}"))
    assert [spec.changes for spec in specs] == [
        {"model.a": a, "model.b": b} for a in (1, 2, 3) for b in "xy"
    ]
    assert specs[0].name == "a=1,b=x"


def test_a_grid_is_crossed_with_the_arms():
    found = study(
        "{arms: {a: {}, b: {model.n_layers: 2, recipe: gdn-small}},"
        " grid: {train.optimizer.lr: [0.001, 0.002], model.pattern: {x: [full], y: null}}}"
    )
    specs = arm_specs(found)
    assert [spec.name for spec in specs] == [
        f"{arm},lr={lr},{pattern}"
        for arm in "ab" for lr in ("0.001", "0.002") for pattern in "xy"
    ]  # fmt: skip
    last = specs[-1]
    assert last.recipe == "gdn-small"
    assert last.changes == {"model.n_layers": 2, "train.optimizer.lr": 0.002, "model.pattern": None}


@pytest.mark.parametrize(
    "text, words",
    [
        ("{armz: {}}", "armz = {}: expected a known key. Did you mean 'arms'?"),
        (f"{{grid: {GRID}, seeds: [1, 2, 2]}}", "every seed once, but 2 is given 2 times"),
        (f"{{grid: {GRID}, seeds: 0}}", "seeds = 0: expected a number of seeds from 1"),
        (f"{{grid: {GRID}, seeds: []}}", "seeds"),
        (f"{{grid: {GRID}, match: [tokens, flops]}}", "at most one of tokens, steps, flops"),
        (f"{{grid: {GRID}, match: weight}}", "match = 'weight': expected one of tokens, steps"),
        ("{}", "there is nothing to compare"),
        ("{grid: {model.n_layers: []}}", "at least one value"),
        (f"{{grid: {GRID}, screen: [3, 1]}}", "growing numbers of seeds"),
        (f"{{grid: {GRID}, seeds: 3, screen: [1, 2]}}", "up to the 3 of the study"),
        (f"{{grid: {GRID}, budget: soon}}", "a positive length"),
        (f"{{grid: {GRID}, runner: {{executor: lokal}}}}", "Did you mean 'local'?"),
        (f"{{grid: {GRID}, runner: {{hang_after: 3 steps}}}}", "a time"),
        (f"{{grid: {GRID}, tune: {{seeds: [1, 1]}}}}", "tune.seeds"),
        (f"{{grid: {GRID}, solve: depth}}", "one of d_ff, d_model, head_dim"),
        (f"{{grid: {GRID}, solve: d_model}}", "solve = 'd_model': expected match to name params"),
        (f"{{grid: {GRID}, seeds: three}}", "seeds = 'three': expected a number of seeds"),
        (f"{{grid: {GRID}, seeds: true}}", "seeds = True: expected a number of seeds"),
        (f"{{grid: {GRID}, seeds: [true, 2]}}", "seeds.0 = True: expected a number, not true"),
        (f"{{grid: {GRID}, budget: 20.5}}", "budget = 20.5: expected a positive length"),
        (f"{{grid: {GRID}, tune: lr}}", "tune = 'lr': expected learning_rate, or settings"),
        (f"{{grid: {GRID}, runner: {{ray: {{num_cpu: 1}}}}}}", "runner.ray.num_cpu = 1"),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(ConfigError) as error:
        study(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{arms: {a: {}, b: {}}, baseline: c}", "expected one of the arms a, b"),
        ("{arms: {alpha: {}, b: {}}, baseline: alhpa}", "Did you mean 'alpha'?"),
        ("{arms: {a: {seed: 3}}}", "arms.a.seed = 3: expected a key of a recipe that"),
        ("{arms: {a: {}}, changes: {name: x}}", "changes.name"),
        ("{arms: {a/b: {}}}", "without '/'"),
        ('{arms: {"a\\0b": {}}}', "control characters"),
        ('{arms: {"a\\nb": {}}}', "control characters"),
        ('{arms: {" a": {}}}', "blanks at its ends"),
        ("{arms: {%s: {}}}" % ("\u6a21" * 41), "at most 120 bytes"),
        ("{grid: {seed: [1, 2]}}", "grid.seed"),
        ("{arms: {a: {recipe: 3}}}", "arms.a.recipe = 3"),
        ("{grid: {model.x: [1.0, 1.0]}}", "two points are both called 'x=1'"),
        ("{grid: {a.b: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], a.c: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],"
         " a.d: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}}", "more than 1000 arms"),
    ],
)  # fmt: skip
def test_arms_that_cannot_be_are_named(text, words):
    with pytest.raises(LabError) as error:
        arm_specs(study(text))
    assert words in str(error.value)


def test_an_arm_without_changes_may_be_left_empty():
    plain, _ = arm_specs(study("{arms: {\u6a21\u578b: null, b: {model.n_layers: -2}}}"))
    assert plain.name == "\u6a21\u578b" and plain.changes == {}
    labels = [spec.name for spec in arm_specs(study("{grid: {model.x: [-1, 1]}}"))]
    assert labels == ["x=-1", "x=1"]


def test_tuning_takes_a_seed_that_exists_and_ranks_nothing():
    found = study(f"{{grid: {GRID}, seeds: [0, 4294967295], tune: learning_rate}}")
    assert found.tuning_seeds == [1]


def test_the_smoke_size_is_judged_with_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"base: quickstart\ngrid: {GRID}\nsmoke: {{seeds: [1, 1]}}\n")
    with pytest.raises(LabError, match=r"smoke\.seeds = \[1, 1\]: expected every seed once"):
        load_study(str(file))


def test_smoke_takes_the_first_seeds_and_neither_tunes_nor_screens():
    found = study(f"{{grid: {GRID}, seeds: 5, tune: learning_rate, screen: [1, 5]}}")
    small = smoke_study(found)
    assert small.seeds == [1, 2, 3] and small.tune is None and small.screen is None
    own = study(
        f"{{grid: {GRID}, seeds: 5, smoke: {{seeds: 2, tune: learning_rate, model.n_layers: 1}}}}"
    )
    small = smoke_study(own)
    assert small.seeds == [1, 2] and small.tune is not None
    assert small.smoke == {"model.n_layers": 1}


def test_files_and_packaged_studies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my study.yaml").write_text(f"base: quickstart\ngrid: {GRID}\n")
    assert load_study("my study.yaml").name == "my-study"
    with pytest.raises(LabError, match=r"study = 'hybrid-patern': expected one of"):
        load_study("hybrid-patern")
    with pytest.raises(LabError, match="cannot be read"):
        load_study("nowhere.yaml")
    for name in packaged_studies():
        assert load_study(name).name == name


def test_metrics():
    found = find_metric("validation.loss_nats", {"language_model"})
    assert found.lower_is_better and found.unit == "nats per token"
    assert not find_metric("test.exact_accuracy", {"refine"}).lower_is_better
    with pytest.raises(ConfigError, match=r"metric = 'validation.los_nats'.*Did you mean 'valid"):
        find_metric("validation.los_nats", {"language_model"})
    with pytest.raises(ConfigError, match="every run of the study has"):
        find_metric("test.exact_accuracy", {"language_model", "refine"})
    summary = {"final": {"loss_nats": 3.5, "accuracy": float("nan")}, "test": None}
    assert metric_value("validation.loss_nats", summary) == 3.5
    for name in ("validation.accuracy", "test.loss_nats", "early_exit.exact_accuracy"):
        assert metric_value(name, summary) is None
    assert len(set(metric_names("refine"))) == len(metric_names("refine"))
