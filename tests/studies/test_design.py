"""What a study means: configs, equal sizes and lengths, and errors before any compute."""

from typing import Any

import pytest
from screens import Quiet

from mixlab.core.config import decode, parse_yaml, to_tree
from mixlab.core.errors import LabError
from mixlab.jobs.config import load_config
from mixlab.nn.language_model import build_model
from mixlab.studies.arms import ArmSpec
from mixlab.studies.changes import arm_tree, drop_unused_blocks
from mixlab.studies.design import Design, design, profile_jobs, take_profiles, to_json
from mixlab.studies.lengths import Costs, match_lengths
from mixlab.studies.plan import _facts, n_runs, refuse_expected
from mixlab.studies.rounds import Rounds
from mixlab.studies.sizes import size_of, solve_size
from mixlab.studies.study_file import StudyFile, smoke_study
from mixlab.training.length import Length

PATTERN_ARMS = "arms: {none: {model.pattern: [linear]}, half: {}, all: {model.pattern: [full]}}"


def study(text: str, **keys: Any) -> StudyFile:
    tree = parse_yaml(f"{{{text}}}", "the test")
    return decode(StudyFile, {"name": "test", "base": "patterns.yaml", **tree, **keys})


def designed(text: str, *, is_smoke: bool = False) -> Design:
    found = study(text)
    return design(smoke_study(found) if is_smoke else found, is_smoke=is_smoke, screen=Quiet())


# --- arms -----------------------------------------------------------------------------------------


def test_blocks_that_an_arm_does_without_are_dropped(study_lab):
    found = designed(PATTERN_ARMS)
    blocks = {name: sorted(arm.config.model.blocks) for name, arm in found.arms.items()}
    assert blocks == {"none": ["linear"], "half": ["full", "linear"], "all": ["full"]}
    assert found.arms["none"].config.model.layers() == ["linear", "linear"]


def test_a_pattern_that_names_no_block_is_left_to_the_config(study_lab):
    tree = {"model": {"blocks": {"a": {}}, "pattern": ["b"], "n_layers": 2}}
    assert drop_unused_blocks(tree) is tree
    with pytest.raises(LabError, match=r"arm 'x': model.pattern = 'fulll': expected a name from"):
        designed("arms: {x: {model.pattern: [fulll]}, y: {}}")


def test_changes_are_dotted_or_nested_and_presets_work(study_lab):
    found = study(PATTERN_ARMS, changes={"train": {"batch_size": 8}, "data": "stdlib"})
    spec = ArmSpec("x", "quickstart", {"train.optimizer": {"lr": 0.5}, "model.n_layers": 3})
    tree = arm_tree(found, spec)
    assert tree["train"]["batch_size"] == 8 and tree["model"]["n_layers"] == 3
    assert tree["train"]["optimizer"]["lr"] == 0.5 and tree["train"]["optimizer"]["kind"] == "muon"
    assert tree["data"]["corpus"]["kind"] == "python-stdlib"
    mixed = arm_tree(found, ArmSpec("y", "quickstart", {"train": {"optimizer.lr": 0.25}}))
    assert mixed["train"]["optimizer"]["lr"] == 0.25


def test_the_names_of_arms_may_be_in_any_script(study_lab):
    found = designed("arms: {\u6a21\u578b: {}, b: {model.n_layers: 3}}")
    names = {arm.config.name for arm in found.arms.values()}
    assert names == {"test", "test-b"}, "run folders keep to ASCII"


@pytest.mark.parametrize(
    "text, words",
    [
        ("arms: {a: {}, b: {model.n_layers: 2}}", "arms 'a' and 'b' are the same"),
        ("arms: {a: {}, b: {about: other words}}", "arms 'a' and 'b' are the same"),
        (
            "arms: {a: {}, b: {model.n_layer: 3}}",
            "arm 'b': model.n_layer = 3: expected a known key",
        ),
        ("arms: {a: {}, b: {model.d_model: wide}}", "arm 'b': model.d_model = 'wide'"),
        ("arms: {a: {}, b: {recipe: gdn-smal}}", "arm 'b': recipe = 'gdn-smal'"),
        (
            "arms: {a: {train.early_stopping: {patience: 1}}}",
            "train.early_stopping: expected to be",
        ),
        (PATTERN_ARMS + ", metric: test.exact_accuracy", "metric = 'test.exact_accuracy'"),
        (PATTERN_ARMS + ", metric: loss", "metric = 'loss': expected a figure that every run"),
        (
            "arms: {a: {}, b: {model.n_layers: 8}}, match: params",
            "arm 'b': match = params: cannot be",
        ),
        (
            PATTERN_ARMS + ", match: flops, budget: 20 steps",
            "match = flops: cannot be reached within",
        ),
        (
            "arms: {a: {}, b: {train.batch_size: 6}}, budget: 10 steps",
            "arm 'b' makes whole updates",
        ),
        ("arms: {a: {data.corpus.path: nowhere}}", "arm 'a': data.corpus.path"),
        ("arms: {a: {}, b: {checkpoint.every: 7}}", "arms 'a' and 'b' are the same"),
        (
            "arms: {a: {}, b: {train.optimizer.lr: 0.02}}, tune: learning_rate",
            "but for the learning rate, which tune finds",
        ),
        (
            "arms: {a: {}, b: {data.tokenizer.vocab_size: 290}}",
            "other tokenizers, and figures per token do not compare between them. Set metric to "
            "validation.bits_per_byte",
        ),
        (
            "arms: {a: {}, b: {data.split.test_frac: 0.3}}",
            "arm a and arm b: do not have the same text",
        ),
        ("arms: {a: {}, b: {recipe: sudoku-4x4}}", "arm 'b': kind = 'refine': expected"),
        ("arms: {a: {}, b: {eval.n_tokens: 128}}", "arm 'b': eval.n_tokens = 128: expected 256"),
        ("base: nowhere, arms: {a: {}}", "base = 'nowhere': recipe = 'nowhere': expected one of"),
    ],
)
def test_errors_come_before_any_compute(study_lab, text, words):
    with pytest.raises(LabError) as error:
        designed(text)
    assert words in str(error.value)


def test_a_plan_says_where_arms_read_sequences_of_other_lengths(study_lab):
    texts = [
        "\n".join(_facts(designed(text)))
        for text in ("arms: {a: {}, b: {data.seq_len: 8}}", "arms: {a: {}, b: {model.n_layers: 3}}")
    ]
    assert "of 8 to 16 tokens: losses per token have other contexts" in texts[0]
    assert "sequences" not in texts[1]


# --- equal sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("knob", ["d_ff", "d_model", "head_dim"])
@pytest.mark.parametrize("recipe", ["hybrid-sparse-17", "attention-mlp-v2", "moe-recursive-11"])
def test_a_size_is_reached_within_half_a_percent(recipe, knob):
    """The target is that of the recipe with 1.15 times as many parameters."""
    config = load_config(recipe)
    target = round(1.15 * size_of(config, "params"))
    found = solve_size(config, "params", target, knob)
    assert abs(found.reached / target - 1) < 0.005
    assert found.reached == size_of(found.config, "params")
    assert solve_size(config, "params", target, knob) == found, "the same every time"
    keys = {key.rsplit(".", 1)[-1] for key in found.changes}
    allowed = {
        "d_ff": {"d_ff", "d_expert"}, "d_model": {"d_model"},
        "head_dim": {"head_dim", "v_head_dim", "qk_nope_head_dim"},
    }[knob]  # fmt: skip
    assert keys and keys <= allowed
    for key, (old, new) in found.changes.items():
        assert new > old, key
        if knob == "head_dim":
            assert new % 2 == 0, key


def test_what_is_solved_is_what_is_built(study_lab):
    found = designed(PATTERN_ARMS + ", match: params")
    built = {
        name: sum(p.numel() for p in build_model(arm.config.model, 1).parameters())
        for name, arm in found.arms.items()
    }
    assert max(built.values()) / min(built.values()) < 1.01
    assert built == {name: size_of(arm.config, "params") for name, arm in found.arms.items()}
    assert not found.arms["none"].solved["changes"], "the baseline stays as it is"
    assert found.arms["all"].solved["changes"] == {"model.blocks.full.channel_mixer.d_ff": [24, 35]}


def test_active_parameters_are_matched_where_asked():
    config = load_config("moe-short")
    target = round(0.97 * size_of(config, "active_params"))
    found = solve_size(config, "active_params", target, "d_ff")
    assert abs(size_of(found.config, "active_params") / target - 1) < 0.005


# --- equal lengths --------------------------------------------------------------------------------


def test_each_arm_spends_what_the_baseline_spends():
    costs = {"a": Costs(100, 1e6, 0.5), "b": Costs(50, 1.5e6, 0.25), "c": Costs(100, 3e6, 2.0)}
    length = Length.parse("400 steps")
    assert match_lengths("steps", length, costs, "a") == {"a": 400, "b": 400, "c": 400}
    assert match_lengths("tokens", length, costs, "a") == {"a": 400, "b": 800, "c": 400}
    assert match_lengths("flops", length, costs, "a") == {"a": 400, "b": 267, "c": 133}
    assert match_lengths("seconds", length, costs, "a") == {"a": 400, "b": 800, "c": 100}
    assert match_lengths("flops", Length.parse("200 seconds"), costs, "a")["c"] == 133
    assert match_lengths("tokens", Length.parse("40k tokens"), costs, "b") == {
        "a": 400, "b": 800, "c": 400,
    }  # fmt: skip


def test_lengths_in_seconds_wait_for_a_timing(study_lab):
    """A few profiled updates set each arm's length; equal seconds, unequal steps."""
    found = designed(PATTERN_ARMS + ", match: seconds, budget: 60 seconds")
    assert not found.has_lengths and to_json(found)["arms"][0]["planned"] is None
    jobs = profile_jobs(found)
    assert set(jobs) == {"none", "half", "all"} and {job.kind for job in jobs.values()} == {
        "profile"
    }
    times = {"none": 0.02, "half": 0.03, "all": 0.05}
    results = {
        n: {"seconds_per_step": t, "flops_per_token_counted": None} for n, t in times.items()
    }
    take_profiles(found, results)
    steps = {name: int(arm.config.train.length.amount) for name, arm in found.arms.items()}
    assert steps == {"none": 3000, "half": 2000, "all": 1200}
    planned = {arm["name"]: arm["planned"]["seconds"] for arm in to_json(found)["arms"]}
    assert planned == pytest.approx(dict.fromkeys(planned, 60.0))


def test_flops_are_counted_besides_the_formula(study_lab):
    found = designed(PATTERN_ARMS + ", match: flops")
    assert found.has_lengths and set(profile_jobs(found)) == {"none", "half", "all"}
    assert not profile_jobs(designed(PATTERN_ARMS))


# --- smoke, jobs, plan ----------------------------------------------------------------------------


def test_smoke_shrinks_all_arms_in_proportion(lab):
    """Layers and patterns stay, so that patterns which differ still differ."""
    text = (
        "base: hybrid-sparse-17, changes: {data: stdlib, data.tokenizer.vocab_size: 600}, "
        "arms: {a: {}, b: {model.pattern.at: [3, 7, 11]}, "
        "c: {model.blocks.full.channel_mixer.d_ff: 4096}}"
    )
    found = study(text)
    from mixlab.studies.design import _configs

    arms = _configs(smoke_study(found), is_smoke=True)
    a, b, c = (arms[name].config.model for name in "abc")
    assert (a.d_model, a.n_layers) == (64, 12) and a.layers().count("full") == 2
    assert b.layers().count("full") == 3
    ratio = c.blocks["full"].channel_mixer.d_ff / a.blocks["full"].channel_mixer.d_ff
    assert ratio == pytest.approx(2.0, rel=0.05)
    train = arms["a"].config.train
    assert int(train.length.amount) == 150 and train.precision == "fp32"
    assert size_of(arms["a"].config, "params") < 1e6


def test_jobs_are_addressed_by_what_decides_their_figures(study_lab):
    found = designed(PATTERN_ARMS + ", seeds: 2")
    content = to_json(found)
    rounds = Rounds(content)
    one = rounds.entry("half", "seed", 1, 0)
    assert one.address != rounds.entry("half", "seed", 2, 0).address
    assert one.address != rounds.entry("half", "seed", 1, 1).address
    assert one.address != rounds.entry("all", "seed", 1, 0).address
    # The same run whatever it is for, what it is called, and whether it is checked.
    assert one.address == rounds.entry("half", "tuning", 1, 0).address
    renamed = designed("arms: {other: {about: words}}")
    again = Rounds(to_json(renamed)).entry("other", "seed", 1, 0)
    assert again.address == one.address and again.job.config["name"] != one.job.config["name"]
    assert rounds.entry("half", "seed", 1, 0).job.config["checks"] == "quick"
    assert rounds.entry("half", "seed", 2, 0).job.config["checks"] == "off"
    assert {arm["data"] for arm in content["arms"]} == set(content["data"])
    assert to_tree(found.arms["half"].config) == content["arms"][1]["config"]


def test_expected_runs_and_a_budget_that_cannot_do():
    tuned = study("arms: {a: {}, b: {}}, seeds: 3, tune: learning_rate")
    assert n_runs(tuned, 2) == (10, 6)
    screened = study("arms: {a: {}, b: {}}, seeds: 8, screen: [1, 3, 8]")
    assert n_runs(screened, 16) == (0, 16 + 9 * 2 + 5 * 5)
    small = study("arms: {a: {}, b: {}}, budget: {total: 1000 tokens}")
    refuse_expected(small, {"tokens": 900.0})
    with pytest.raises(
        LabError, match=r"budget.total = 1K tokens: is too little.* about 2,000 tok"
    ):
        refuse_expected(small, {"tokens": 2000.0})
