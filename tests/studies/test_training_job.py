"""One real job: trained, killed, resumed, measured; and a whole small study in this process."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from screens import Quiet
from stub_study import InProcessExecutor

from mixlab.core.config import to_tree
from mixlab.core.errors import DataError, LabError
from mixlab.core.run_dir import RunDir
from mixlab.data.loader import Loader
from mixlab.evals.by_document import loss_by_document
from mixlab.evals.language_modelling import evaluate
from mixlab.jobs.config import load_config
from mixlab.jobs.session import prepare_data
from mixlab.jobs.trained import open_trained
from mixlab.studies import Request, run_requests
from mixlab.studies.address import code_version, data_key
from mixlab.studies.changes import apply_changes, base_tree, drop_unused_blocks
from mixlab.studies.job_store import Job
from mixlab.studies.profile_job import profile_job
from mixlab.studies.progress import Silent
from mixlab.studies.promote import promote
from mixlab.studies.training_job import DataCache, data_order, train_job
from mixlab.studies.worker import run_real_job
from mixlab.training.checkpoint import steps

SHORT = ["train.length=6 steps", "eval.every=3", "checkpoint.every=2", "checks=off"]


@pytest.fixture
def job(study_lab, no_pictures):
    config = load_config("patterns.yaml", SHORT)
    data = data_key(prepare_data(config, Quiet()).manifest)
    return Job("train", to_tree(config), data, code_version()["digest"], documents=True)


class Killed(BaseException):
    """As if by SIGKILL: nothing is saved any more."""


class DiesAt(Quiet):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def training(self, row, n_steps, eta_s):
        if row["step"] == self.step:
            raise Killed


@pytest.mark.slow
def test_a_job_that_was_killed_ends_as_one_that_was_not(job, tmp_path):
    """It resumes from its checkpoint, and its losses are the same to the last bit."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train_job(job, tmp_path / "a", Quiet(), DataCache())
    with pytest.raises(Killed):
        train_job(job, tmp_path / "b", DiesAt(5), DataCache())
    killed = RunDir(tmp_path / "b" / "run")
    assert steps(killed.checkpoints_path)[-1] == 4
    resumed = train_job(job, tmp_path / "b", Quiet(), DataCache())
    assert len(killed.read_jsonl("sittings.jsonl")) == 2, "it went on, and did not begin again"
    assert resumed["summary"]["final"]["loss_nats"] == whole["summary"]["final"]["loss_nats"]
    assert resumed["summary"]["test"]["loss_nats"] == whole["summary"]["test"]["loss_nats"]
    metrics = killed.read_jsonl("metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert resumed["order"] == whole["order"] and resumed["data"] == job.data
    again = train_job(job, tmp_path / "b", Quiet(), DataCache())
    assert len(killed.read_jsonl("sittings.jsonl")) == 2, "a finished one is only measured"
    assert again["summary"] == resumed["summary"]


@pytest.mark.slow
def test_a_damaged_checkpoint_means_a_fresh_start(job, tmp_path):
    with pytest.raises(Killed):
        train_job(job, tmp_path, DiesAt(5), DataCache())
    weights = tmp_path / "run" / "checkpoints" / "step-000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    screen = Quiet()
    result = train_job(job, tmp_path, screen, DataCache())
    assert result["summary"]["steps"] == 6
    assert any(note.startswith("Beginning again: ") for note in screen.notes)


@pytest.mark.slow
def test_only_what_the_study_keeps_stays(job, tmp_path):
    kept = {}
    for keep in ("last", "none"):
        (tmp_path / keep).mkdir()
        train_job(replace(job, keep=keep, documents=False), tmp_path / keep, Quiet(), DataCache())
        kept[keep] = steps(tmp_path / keep / "run" / "checkpoints")
        assert not (tmp_path / keep / "documents.json").exists()
    assert kept["last"][-1] == 6 and len(kept["last"]) <= 2 and not kept["none"]


def test_other_text_is_refused(job, tmp_path):
    with pytest.raises(DataError, match="text has changed"):
        train_job(replace(job, data="other"), tmp_path, Quiet(), DataCache())


@pytest.mark.slow
def test_documents_add_up_to_the_validation_loss(job, tmp_path):
    result = train_job(job, tmp_path, Quiet(), DataCache())
    found = json.loads((tmp_path / "documents.json").read_text())
    final = result["summary"]["final"]
    assert sum(found["tokens"]) == final["n_tokens"]
    assert sum(found["nats"]) / sum(found["tokens"]) == pytest.approx(final["loss_nats"], rel=1e-6)
    bits = sum(found["nats"]) / np.log(2) / sum(found["bytes"])
    assert bits == pytest.approx(final["bits_per_byte"], rel=1e-6)
    assert result["decode_ms"] > 0


@pytest.mark.slow
def test_targets_belong_to_the_document_whose_text_they_are(job, tmp_path):
    """Against a count over the stream itself."""
    train_job(replace(job, keep="last"), tmp_path, Quiet(), DataCache())
    trained = open_trained(tmp_path / "run", "last")
    config = load_config(str(tmp_path / "run" / "config.yaml"))
    data = prepare_data(config, Quiet())
    shards = data.split("validation")
    loader = Loader(shards, 16, 1)
    n = loader.n_windows
    found = loss_by_document(trained.model, loader, n, 8, shards.token_bytes)
    stream = np.asarray(shards.tokens[: 16 * n + 1])
    ends = np.flatnonzero(stream == shards.eos_id)
    assert len(ends) >= 3, "several documents"
    # Document k has the tokens after the k-th EOS up to its own; the first token has no target.
    sizes = np.diff(np.concatenate([[0], ends, [16 * n]]))
    assert found.n_targets.tolist() == [size for size in sizes.tolist() if size]
    whole = evaluate(trained.model, loader.window_batches(n, 8), shards.token_bytes)
    assert found.nats.sum() / found.n_targets.sum() == pytest.approx(whole.loss_nats, rel=1e-6)


def test_the_same_seed_means_the_same_text_in_the_same_order(study_lab):
    """Whatever the model and the batch size; another seed or another text differ."""

    def order(*overrides):
        config = load_config("patterns.yaml", list(overrides))
        return data_order(config, prepare_data(config, Quiet()))

    base = order()
    assert order("model.n_layers=4", "train.batch_size=2", "train.optimizer.lr=0.1") == base
    assert order("seed=2") != base and order("data.tokenizer.vocab_size=280") != base


def test_the_counted_flops_agree_with_the_formula(job, tmp_path):
    """Everything but attention to the last FLOP; there the counter takes the whole square of
    scores (2 products forward, 5 backward), the formula the causal half (2 and 4)."""
    tree = apply_changes(base_tree("patterns.yaml"), {"model.pattern": ["full"]})
    tree = drop_unused_blocks({**tree, "eval": {"n_tokens": 64, "every": 100}})
    result = profile_job(replace(job, kind="profile", config=tree), Quiet(), DataCache())
    config = load_config("patterns.yaml", ["model.pattern=[full, linear]"])
    assert result["seconds_per_step"] > 0 and result["data"] == job.data
    n_layers, q, T, D, d_ff, vocab = 2, 16, 16, 16, 24, config.model.vocab_size
    linear = 3 * 2 * (n_layers * (4 * D * q + 3 * D * d_ff) + D * vocab)
    assert result["flops_per_token_counted"] == linear + n_layers * 7 * 2 * T * q
    full = load_config("patterns.yaml").model.blocks["full"]
    formula = linear + n_layers * 3 * (full.flops_per_token(D, T) - 2 * (4 * D * q + 3 * D * d_ff))
    assert formula == linear + n_layers * 6 * 2 * q * (T + 1) / 2


def real(folder):
    return lambda: InProcessExecutor(folder, run_real_job())


@pytest.mark.slow
def test_requests_are_run_once(study_lab, no_pictures):
    folder = study_lab / "listed"
    configs = [load_config("patterns.yaml", [*SHORT, f"seed={seed}"]) for seed in (1, 2)]
    requests = [Request("one", configs[0]), Request("two", configs[1]), Request("same", configs[0])]
    rows = run_requests(folder, requests, executor=real(folder), poll_s=0.01)
    assert rows["one"]["value"] == rows["same"]["value"] != rows["two"]["value"]
    assert rows["two"]["seed"] == 2 and (folder / rows["two"]["run"] / "summary.json").exists()
    broken = lambda: pytest.fail("nothing is left to run")  # noqa: E731
    assert run_requests(folder, requests, executor=broken, poll_s=0.01) == rows
    with pytest.raises(LabError, match="'one' comes twice"):
        run_requests(folder, [requests[0], requests[0]])
    assert run_requests(folder, []) == {}


@pytest.mark.parametrize(
    "tune", ["", pytest.param("tune: {seeds: [1], max_runs: 4}\n", marks=pytest.mark.slow)]
)
def test_a_study_is_run_and_promoted(study_lab, no_pictures, tune):
    """From the file to a recipe; the recipe is the arm, at the rate found for it."""
    from mixlab.studies.prepare_study import prepare_study
    from mixlab.studies.study import drive_study

    (study_lab / "small.yaml").write_text(
        "base: patterns.yaml\nbudget: 6 steps\nseeds: 1\nmatch: [tokens, params]\n"
        f"{tune}"
        "changes: {eval.every: 6, checkpoint.every: 6, sample.n: 0, checks: 'off'}\n"
        "arms: {half: {}, all: {model.pattern: [full]}}\n"
    )
    prepared = prepare_study("small.yaml", screen=Quiet())
    folder = study_lab / "studies" / "small"
    found = drive_study(
        prepared.found, folder, prepared.asked, Silent(), executor=real(folder), poll_s=0.01
    )
    results = found.results
    assert results["is_complete"] and results["paired"]["is_paired"]
    assert all(entry["is_within"] for entry in results["match"]["realised"].values())
    arm = results["arms"][1]
    link = folder / "arms" / "all" / "seed-1"
    assert link.is_symlink() and (link / "summary.json").exists()
    seed_run = results["jobs"][arm["jobs"]["1"]]
    assert seed_run["purposes"] == (["seed", "tuning"] if tune else ["seed"]), "one serves both"
    path, remarks = promote(folder, "all", "found")
    config = load_config(str(path))
    assert config.train.optimizer.lr == arm["lr"] == seed_run["lr"]
    assert not tune or arm["lr"] == arm["tuning"]["best_lr"]
    ((_, (old, new)),) = arm["solved"]["changes"].items()
    assert old == 24 != config.model.blocks["full"].channel_mixer.d_ff == new
    assert "Arm all of the study small" in config.about
    for name, words in (("al", "Did you mean 'all'"), ("all", "exists already")):
        with pytest.raises(LabError, match=words):
            promote(folder, name, "found")
    with pytest.raises(LabError, match="is a packaged recipe"):
        promote(folder, "all", "quickstart")
    shutil.rmtree(folder)
    assert torch.get_num_threads() >= 1 and isinstance(remarks, list)
