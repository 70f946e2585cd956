"""Shrinking a recipe keeps what it is made of, and what is left trains."""

import pytest

from mixlab.core.config import decode, to_tree
from mixlab.core.recipes import list_recipes, load_recipe
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.smoke import N_STEPS, load_shrunk, shrink
from mixlab.jobs.train import start_run
from mixlab.nn.budget import model_budget

NAMES = [recipe.name for recipe in list_recipes()]
RECIPES = [name for name in NAMES if isinstance(load_config(name), RunConfig)]
REFINERS = [name for name in NAMES if name not in RECIPES]
BLOCKS = {
    "linear": {
        "sequence_mixer": {"kind": "gated_deltanet", "n_heads": 6, "n_v_heads": 24,
                           "head_dim": 128, "v_head_dim": 256},
        "channel_mixer": {"kind": "mlp", "d_ff": 2048},
    },
    "full": {
        "sequence_mixer": {"kind": "attention", "n_heads": 12, "n_kv_heads": 3, "head_dim": 100,
                           "rope_frac": 0.3, "window": 512},
        "channel_mixer": {"kind": "moe", "n_experts": 64, "n_active_experts": 8, "d_expert": 256,
                          "n_shared_experts": 1},
    },
}  # fmt: skip


def with_pattern(pattern, n_layers, **train):
    tree = {
        "name": "big",
        "data": {"corpus": {"kind": "python-stdlib"}, "seq_len": 1024,
                 "tokenizer": {"kind": "bpe", "vocab_size": 49152}},
        "model": {"vocab_size": 49152, "d_model": 768, "n_layers": n_layers, "blocks": BLOCKS,
                  "pattern": pattern},
        "train": {"length": "1000 steps", "batch_size": 48, "optimizer": {"kind": "adamw"},
                  "schedule": {"kind": "wsd", "warmup_steps": 100}, **train},
    }  # fmt: skip
    return decode(RunConfig, tree)


@pytest.mark.parametrize(
    ("pattern", "n_layers", "expected"),
    [
        ({"block": "full", "at": [5, 11], "rest": "linear"}, 12, "llfllf"),
        ({"block": "full", "at": [6, 7], "rest": "linear"}, 8, "llff"),
        ({"block": "full", "at": [1, 3, 5, 7], "rest": "linear"}, 8, "lflflflf"),
        ({"block": "full", "at": [0], "rest": "linear"}, 9, "fll"),
        ({"block": "full", "every": 4, "rest": "linear"}, 12, "llfllfllf"),
        (["linear", "linear", "linear", "full"], 8, "llfllf"),
        (["linear", "full"], 3, "lfl"),
    ],
)
def test_the_order_of_blocks_survives(pattern, n_layers, expected):
    small = shrink(with_pattern(pattern, n_layers))
    assert "".join(name[0] for name in small.model.layers()) == expected
    assert shrink(small) == small


def test_ratios_and_switches_survive():
    small = shrink(with_pattern(["linear", "full"], 2))
    linear, full = small.model.blocks["linear"], small.model.blocks["full"]
    assert linear.sequence_mixer.n_v_heads == 2 * linear.sequence_mixer.n_heads
    assert linear.sequence_mixer.v_head_dim == 2 * linear.sequence_mixer.head_dim
    assert linear.sequence_mixer.conv_size == 4
    assert full.sequence_mixer.n_heads == 2 * full.sequence_mixer.n_kv_heads == 4
    assert full.sequence_mixer.rope_dim > 0
    # The window was half of a sequence, and still is.
    assert full.sequence_mixer.window == small.data.seq_len // 2
    moe = full.channel_mixer
    assert (moe.n_experts, moe.n_active_experts, moe.n_shared_experts) == (4, 2, 1)
    assert small.train.length.amount == N_STEPS
    # The same tenth of the updates warms up.
    assert small.train.schedule.warmup_steps == 2


def test_accumulation_survives():
    small = shrink(with_pattern(["linear", "full"], 2, micro_batch_size=8))
    assert small.train.n_micro_batches == 2


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_grows(name):
    config = load_config(name)
    small = load_shrunk(name)
    assert shrink(small) == small
    assert {b.sequence_mixer.kind for b in small.model.blocks.values()} == {
        b.sequence_mixer.kind for b in config.model.blocks.values()
    }
    assert list(small.model.blocks) == list(config.model.blocks)
    before = model_budget(config.model, config.data.seq_len)
    after = model_budget(small.model, small.data.seq_len)
    assert after.n_params < 500_000 < before.n_params
    assert small.tokens_per_step <= config.tokens_per_step


@pytest.mark.parametrize("name", REFINERS)
def test_refiners_shrink(name):
    small = load_shrunk(name)
    assert shrink(small) == small
    assert small.train.length.amount <= N_STEPS
    assert small.data.task.kind == load_config(name).data.task.kind


@pytest.mark.parametrize("name", ["sudoku-4x4", "maze-10x10"])
def test_small_refiners_train(name, lab, quiet, no_pictures):
    config = load_shrunk(name, ["train.device=cpu", "train.threads=1"])
    result = start_run(config, run_dir=lab / "run", screen=quiet, command="test")
    assert result.status == "finished" and result.summary["steps"] == config.train.length.amount


def test_a_ready_made_tokenizer_keeps_its_rows():
    tree = load_recipe("quickstart")
    tree["data"]["tokenizer"] = {"kind": "file", "path": "tokenizer.json"}
    assert shrink(decode(RunConfig, tree)).model.vocab_size == tree["model"]["vocab_size"]


def distinct_models() -> dict[str, str]:
    """One recipe of each small model: many recipes differ in size alone."""
    return {str(to_tree(load_shrunk(name).model)): name for name in reversed(RECIPES)}


# One of each kind always; the others differ from these in the order of their blocks, in cycles, or
# are two of these in one.
ALWAYS = {"quickstart", "attention-mlp", "moe", "gdn-large", "hybrid-sparse", "looped-lm"}
TRAINED = [
    pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow)
    for name in sorted(distinct_models().values())
]


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_trains_and_passes_the_quick_checks(
    name, lab, tiny_corpus, quiet, no_pictures
):
    text = f"data.corpus={{kind: text, path: '{tiny_corpus}', document: file}}"
    config = load_shrunk(name, [text, "train.device=cpu", "train.threads=1"])
    result = start_run(config, run_dir=lab / "run", screen=quiet, command="test")
    assert result.status == "finished" and result.summary["steps"] == N_STEPS
    checks = result.run.read_json("checks.json")
    assert checks["passed"] and {row["verdict"] for row in checks["results"]} == {"pass"}
    first, *_, last = result.run.evals()["loss_nats"]
    assert last < first
