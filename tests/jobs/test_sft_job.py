"""Tuning a run on questions and answers: what the child has of its parent, and that it is a run."""

import json
import shutil
import signal

import pytest
import torch
from screens import Quiet
from tiny_runs import Signalling

from mixlab.core.config import read_yaml
from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.messages import Message
from mixlab.jobs.chat_format import open_chat_format
from mixlab.jobs.check import check
from mixlab.jobs.extend import extend_run
from mixlab.jobs.sft import grow_vocabulary, tune_run
from mixlab.jobs.trained import open_trained
from mixlab.training import checkpoint as checkpoints

SHORT = ("train.length=6 steps", "data.seq_len=64", "train.batch_size=2", "eval.every=3",
         "eval.n_tokens=256", "eval.n_answers=6", "checkpoint.every=2", "train.threads=1",
         "train.device=cpu", "train.precision=fp32", "train.ema={rate: 0.5}",
         "checks=off")  # fmt: skip


@pytest.fixture(scope="session")
def parent(uninterrupted):
    """The tiny recipe, run through; with an average of its weights, which is what is tuned."""
    return uninterrupted


@pytest.fixture
def rows(tmp_path):
    """Rows of JSON with questions over the alphabet of the tiny corpus."""
    path = tmp_path / "chats.jsonl"
    examples = [{"prompt": f"add {i} a", "completion": f"{i} a"} for i in range(150)]
    path.write_text("".join(json.dumps(row) + "\n" for row in examples))
    return str(path)


@pytest.fixture
def tune(lab, parent, rows, no_pictures):
    def run(*overrides, name="child", screen=None, of=parent, data=rows, **settings):
        return tune_run(
            of, data, (*SHORT, *overrides), run_dir=lab / name, screen=screen or Quiet(),
            command="test", **settings,
        )  # fmt: skip

    return run


def test_a_child_starts_from_its_parents_weights_and_has_rows_for_the_marks(tune, parent, lab):
    result = tune("checkpoint.keep_every=1", "checkpoint.every=6")
    begun = checkpoints.load(lab / "child" / "checkpoints" / "step-000000").tensors["model"]
    old = open_trained(parent).model.state_dict()
    assert begun["embed_tokens.weight"].shape == (302, 16)
    assert torch.equal(begun["embed_tokens.weight"][:300], old["embed_tokens.weight"])
    others = [name for name in old if name != "embed_tokens.weight"]
    assert all(torch.equal(begun[name], old[name]) for name in others)
    summary = result.summary
    assert summary["parent"]["step"] == 12 and str(parent) in summary["parent"]["run"]
    assert summary["answers"]["n"] == 6 == summary["answers"]["before"]["n"]
    answers = result.run.read_jsonl("answers.jsonl")
    assert len(answers) == 6 and answers[0]["question"].startswith("add ")
    assert len(result.run.read_jsonl("samples.jsonl")) == 3
    first, *_, last = result.run.read_jsonl("evals.jsonl")
    assert first["step"] == 0 and last["loss_nats"] < first["loss_nats"]


def test_new_rows_are_like_the_old_ones_on_average():
    g = torch.Generator().manual_seed(0)
    old = torch.randn(400, 8, generator=g) + 3
    weights = {"embed_tokens.weight": old, "lm_head.weight": old, "norm.weight": torch.ones(8)}
    grown = grow_vocabulary(weights, 600, 400, seed=1)
    assert grown["embed_tokens.weight"] is grown["lm_head.weight"], "tied before, tied after"
    new = grown["embed_tokens.weight"][400:]
    assert new.shape == (200, 8) and torch.equal(grown["norm.weight"], weights["norm.weight"])
    torch.testing.assert_close(new.mean(dim=0), old.mean(dim=0), atol=0.05, rtol=0)
    assert 0.05 < new.std() < 0.2, "a tenth of the old spread"
    # Rows that were there but stood for no token count as new: they were never learned.
    again = grow_vocabulary({"embed_tokens.weight": old}, 400, 390, seed=1)["embed_tokens.weight"]
    assert torch.equal(again[:390], old[:390]) and not torch.equal(again[390:], old[390:])


def test_a_child_is_talked_to_by_its_template(tune, lab):
    tune()
    run = RunDir.open(lab / "child")
    trained = open_trained(run.path, "last")
    chat = open_chat_format(run, trained.tokenizer)
    assert chat.is_tuned and chat.template.name == "chatml" and not chat.prefix_lm
    prompt = chat.prompt_ids([Message("user", "add 3 a")])
    assert trained.model(torch.tensor([prompt])).logits.shape[-1] == 302


def test_a_base_run_says_that_it_is_none(parent):
    chat = open_chat_format(RunDir.open(parent), open_trained(parent).tokenizer)
    assert not chat.is_tuned and chat.template.name == "plain"


def test_a_broken_off_child_ends_like_one_that_was_not_even_without_its_parent(
    tune, resume, parent, lab
):
    whole = tune(name="whole")
    own = shutil.copytree(parent, lab / "own")
    stopped = tune(name="parts", of=own, screen=Signalling(3, signal.SIGINT))
    assert stopped.status == "interrupted"
    shutil.rmtree(own)
    (lab / "parts").rename(lab / "moved")
    done = resume(lab / "moved")
    assert done.status == "finished"
    a, b = (checkpoints.load(lab / name / "checkpoints" / "step-000006") for name in
            ("whole", "moved"))  # fmt: skip
    for group, tensors in a.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.tensors[group][name]), f"{group}/{name}"
    assert whole.summary["answers"]["exact"] == done.summary["answers"]["exact"]


@pytest.mark.slow
def test_a_child_can_be_extended_and_what_comes_of_it_checked(tune, lab):
    tune()
    extended = extend_run(lab / "child", n_steps=8, screen=Quiet())
    assert extended.summary["steps"] == 8 and extended.summary["answers"]["n"] == 6
    shutil.rmtree(lab / "child")
    assert not check(str(extended.run.path), screen=Quiet()).failed


@pytest.mark.slow
def test_a_killed_child_begins_again_at_its_parents_weights(tune, resume, lab, monkeypatch):
    """Before its first update, all that there is of it is step 0."""
    with monkeypatch.context() as patch:
        patch.setattr("mixlab.jobs.sft.run_sitting", lambda *args: None)
        tune()
    assert checkpoints.steps(lab / "child" / "checkpoints") == [0]
    assert resume(lab / "child").status == "finished"


def test_epochs_are_passes_over_the_packed_examples(tune, parent, lab, rows):
    settings = tuple(o for o in SHORT if not o.startswith("train.length"))
    result = tune_run(
        parent, rows, settings, run_dir=lab / "two", epochs=2, screen=Quiet(), command="test"
    )
    n_rows = result.run.read_json("data.json")["splits"]["train"]["sequences"]
    assert result.summary["steps"] == round(2 * n_rows / 2)
    # FLOPs count what was computed, the tokens only what was learned from.
    assert result.summary["flops"] == pytest.approx(
        result.summary["steps"] * 2 * 64 * result.summary["flops_per_token"]
    )
    assert result.summary["tokens"] < result.summary["steps"] * 2 * 64 / 2


@pytest.mark.slow
def test_a_child_of_a_child_keeps_its_template_and_its_vocabulary(tune, lab):
    tune("data.chat.template=plain", name="first")
    tune(name="second", of=lab / "first")
    config = read_yaml(lab / "second" / "config.yaml")
    assert config["data"]["chat"]["template"] == "plain"
    assert config["model"]["vocab_size"] == 300, "plain needs no marks"


def test_a_prefix_lm_is_trained_and_asked_with_prompts_read_both_ways(tune):
    result = tune("data.chat.prefix_lm=true")
    assert result.status == "finished" and result.summary["answers"]["n"] == 6


@pytest.mark.parametrize(
    "overrides, data, settings, message",
    [
        ((), "no-such.jsonl", {}, r"data = 'no-such.jsonl': expected a file .* or one of instr"),
        (("model.n_layers=2",), None, {}, r"model.n_layers = 2: expected the model and the tok"),
        (("train=3",), None, {}, r"train = 3: expected a group of settings"),
        (("data.chat=3",), None, {}, r"data.chat = 3"),
        (
            ("data.tokenizer.kind=bpe",),
            None,
            {},
            r"data.tokenizer.\w+ = .*: expected the model and the tok",
        ),
        ((), None, {"epochs": 2.0}, r"--epochs 2: expected without train.length"),
        (("data.chat.template=alpaca",), None, {}, r"data.chat.template = 'alpaca'"),
        (("data.seq_len=8",), None, {}, r"data.seq_len = 8: expected room for whole examples"),
        (("train.batch_size=500",), None, {}, r"train.batch_size=\d+ or less"),
    ],
)
def test_what_cannot_be_tuned_is_refused_and_leaves_no_folder(
    tune, lab, overrides, data, settings, message
):
    with pytest.raises(LabError, match=message):
        tune(*overrides, **({} if data is None else {"data": data}), **settings)
    assert not (lab / "child").exists()


def test_a_taken_name_and_a_missing_run_are_refused(tune, lab):
    (lab / "child").mkdir()
    with pytest.raises(LabError, match="is a folder already"):
        tune()
    with pytest.raises(LabError, match="there is no run folder"):
        tune(of=lab / "nothing", name="other")
