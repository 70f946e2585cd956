"""Recipes are made into runs by a stub: what is asked of it, what a second call adds, controls."""

import pytest
from stub_runs import LOOPED, StubWorker, config, manifest, write_arm

from mixlab.core.config import dump_yaml, to_tree
from mixlab.core.errors import LabError
from mixlab.jobs.kinds import KINDS
from mixlab.studies import comparison, comparison_making, comparison_memory
from mixlab.studies.comparison import compare
from mixlab.studies.side_by_side import Timed

MORE_SEEDS = ["plain, seed 3", "looped, seed 3"]


class Prepared:
    manifest = manifest()


@pytest.fixture(autouse=True)
def worker(tmp_path, monkeypatch):
    """Looped models lose 0.1 nats, deeper ones gain 0.2; seeds differ by 0.01."""
    monkeypatch.chdir(tmp_path)

    def loss(cfg):
        gain = 0.1 * (cfg.model.recursion is not None) - 0.2 * (cfg.model.n_layers > 4)
        return 4 + gain + 0.01 * cfg.seed + 0.003 * (cfg.seed % 2) * cfg.model.n_layers

    stub = StubWorker(loss)
    monkeypatch.setattr(comparison_making, "run_requests", stub)
    timed = Timed(first=0.9, second=0.3)
    monkeypatch.setattr(comparison_memory, "time_side_by_side", lambda first, second: timed)
    kind = KINDS["language_model"]._replace(prepare_data=lambda cfg, screen: Prepared)
    monkeypatch.setattr(comparison, "kind_of", lambda cfg: kind)
    monkeypatch.setattr(comparison, "write_comparison_plots", lambda summary, path: path)
    return stub


@pytest.fixture
def recipes(tmp_path):
    for name, overrides in (("plain", ()), ("looped", LOOPED)):
        (tmp_path / f"{name}.yaml").write_text(dump_yaml(to_tree(config(*overrides))))
    return ["plain.yaml", "looped.yaml"]


def test_every_recipe_runs_with_every_seed_and_a_second_call_adds_what_lacks(recipes, worker):
    done = compare(*recipes, seeds=2, output="out")
    assert worker.made == [f"{n}, seed {s}" for n in ("plain", "looped") for s in (1, 2)]
    assert done.summary["seeds"] == [1, 2]
    assert "saw the same sequences in the same order" in done.text
    worker.made.clear()
    assert compare(*recipes, seeds=2, output="out").summary == done.summary and not worker.made
    compare(*recipes, seeds=3, output="out")
    assert worker.made == MORE_SEEDS
    link = done.folder / "arms" / "looped" / "seed-3"
    assert (link / "config.yaml").is_file()


def test_three_seeds_unless_told(recipes, worker):
    assert compare(*recipes, output="out").summary["seeds"] == [1, 2, 3]


def test_recipes_get_the_tokens_of_the_first(tmp_path, recipes):
    short = to_tree(config("name=short", "train.length=3 steps", "train.batch_size=2"))
    (tmp_path / "short.yaml").write_text(dump_yaml(short))
    done = compare("plain.yaml", "short.yaml", seeds=1, output="out")
    first, second = done.summary["arms"]
    assert first["tokens"] == second["tokens"] == 8 * 4 * 16 and second["steps"] == 16
    assert "does not see the batches of plain" in done.text


def test_recipes_beside_runs_take_their_seeds_and_tokens(tmp_path, recipes, worker):
    runs = write_arm(tmp_path, "old", config("model.d_model=24", "train.length=12 steps"), [4, 4.1])
    done = compare(*runs, "looped.yaml", output="out")
    assert worker.made == ["looped, seed 1", "looped, seed 2"]
    assert done.summary["arms"][1]["steps"] == 12


def test_controls_are_made_once_and_matched(recipes, worker):
    done = compare(*recipes, seeds=2, controls=True, output="out")
    made = {label.split(",")[0] for label in worker.made}
    # The first arm is the control of equal parameters; it is not made again.
    assert made == {"plain", "looped", "looped-same-flops", "looped-same-time",
                    "looped-fixed-steps"}  # fmt: skip
    rows = {row["kind"]: row for row in done.summary["controls"][0]["rows"]}
    assert all(row["status"] == "present" and row["is_within"] for row in rows.values())
    assert rows["same-params"]["arm"] == "plain"
    # Updates with recursion take 3 times as long: 8 of them are 24 without.
    assert rows["same-time"]["arm"] == "looped-same-time"
    times = {arm["name"]: arm["steps"] for arm in done.summary["arms"]}
    assert times["looped-same-time"] == 24
    assert rows["same-flops"]["ratio"] == pytest.approx(1, abs=0.01)
    assert rows["same-flops"]["verdict"] == "worse" and "looped is worse" in done.text
    assert "MISSING" not in done.text


def test_controls_can_be_added_by_the_folder_alone(recipes, worker):
    compare(*recipes, seeds=2, output="out")
    worker.made.clear()
    done = compare(output="out", controls=True)
    assert len(worker.made) == 3 * 2 and done.summary["seeds"] == [1, 2]
    # Later calls keep them without being told.
    assert len(compare(*recipes, seeds=2, output="out").summary["arms"]) == 5


def test_configs_are_taken_as_they_are(worker):
    done = compare(config(), config(*LOOPED), seeds=[5], output="out")
    assert worker.made == ["plain, seed 5", "looped, seed 5"]
    assert "MISSING. Make it with: mixlab compare --controls -o out" in done.text
    worker.made.clear()
    compare(output="out", controls=True)
    assert worker.made == [f"looped-{kind}, seed 5"
                           for kind in ("same-flops", "fixed-steps", "same-time")]  # fmt: skip


def test_a_run_that_failed_is_said_and_the_others_count(recipes, worker):
    normal = worker.loss
    worker.loss = lambda cfg: None if (cfg.seed, cfg.model.recursion) == (2, None) else normal(cfg)
    done = compare(*recipes, seeds=3, output="out")
    assert "plain, seed 2 failed (diverged): the loss is nan." in done.text
    assert list(done.summary["against_baseline"][0]["difference"]["seeds"]) == [1, 3]


def test_an_arm_that_failed_with_every_seed_ends_it(recipes, worker):
    normal = worker.loss
    worker.loss = lambda cfg: None if cfg.model.recursion else normal(cfg)
    with pytest.raises(LabError, match=r"looped: failed with every seed.*the loss is nan"):
        compare(*recipes, seeds=2, output="out")


def test_documents_count_from_eight_seeds_on(recipes, worker):
    few = compare(*recipes, seeds=7, output="few").summary["against_baseline"][0]["difference"]
    many = compare(*recipes, seeds=8, output="many").summary["against_baseline"][0]["difference"]
    assert few["method"] == "paired t"
    assert many["method"] == "bootstrap over seeds, then documents"


def test_another_comparison_in_the_folder_is_refused(recipes):
    compare(*recipes, seeds=1, output="out")
    with pytest.raises(LabError, match=r"plain is another one.*train.optimizer.lr: 0.01 -> 0.02"):
        compare(*recipes, overrides=["train.optimizer.lr=0.02"], seeds=1, output="out")
    with pytest.raises(LabError, match="expected the recipes as well"):
        compare(overrides=["train.optimizer.lr=0.02"], output="out")
    with pytest.raises(LabError, match="holds no comparison to go on with"):
        compare(output="elsewhere")


def test_the_same_recipe_twice_is_refused(recipes, tmp_path):
    with pytest.raises(LabError, match="plain is given twice"):
        compare("plain.yaml", "plain.yaml")
    copy = to_tree(config("name=copy"))
    (tmp_path / "copy.yaml").write_text(dump_yaml(copy))
    with pytest.raises(LabError, match="copy is the same as plain"):
        compare("plain.yaml", "copy.yaml")
    (tmp_path / "other.yaml").write_text(dump_yaml(to_tree(config("model.d_model=24"))))
    with pytest.raises(LabError, match="two different recipes are called plain"):
        compare("plain.yaml", "other.yaml")


def test_a_length_in_seconds_is_refused(recipes):
    with pytest.raises(LabError, match=r"train.length = '9 seconds': expected steps, tokens"):
        compare(*recipes, overrides=["train.length=9 seconds"])


def test_batches_that_cannot_make_the_tokens_are_refused(recipes, tmp_path):
    (tmp_path / "large.yaml").write_text(
        dump_yaml(to_tree(config("name=large", "train.batch_size=7")))
    )
    with pytest.raises(LabError, match="cannot make the 512 tokens of plain"):
        compare("plain.yaml", "large.yaml")
