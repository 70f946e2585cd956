"""Runs go out as whole folders or not at all, and come back as runs that can be used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixlab.core.config import dump_yaml, read_yaml
from mixlab.core.errors import ConfigError, MissingPackageError, RunError
from mixlab.export import parity
from mixlab.export.fields import ModelFolderError
from mixlab.export.stock_files import stock_tensors
from mixlab.export.verdict import verdict
from mixlab.export.whole_folder import OutputError
from mixlab.jobs.check import check
from mixlab.jobs.export import NoStockHomeError, export_run
from mixlab.jobs.extend import extend_run
from mixlab.jobs.import_ import import_checkpoint
from mixlab.jobs.train import resume_run
from mixlab.jobs.trained import open_trained

GOOD = {
    "architecture": "LlamaForCausalLM", "transformers": "5.x", "torch": "2.x",
    "n_parameters": 123, "largest_logit_difference": 2e-6, "largest_logit": 3.0,
    "cached_against_uncached": 1e-6, "greedy_equal": 4, "greedy_prompts": 4,
    "tokenizer_equal": True, "tokenizer_adds": False,
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """Stand in for the other process; tests/export has the real one."""
    answers = []

    def measure(jobs, work, environment):
        if answers and isinstance(answers[0], BaseException):
            raise answers[0]
        assert all((job.folder / "model.safetensors").exists() for job in jobs)
        return [dict(GOOD) | (answers[0] if answers else {}) for _ in jobs]

    monkeypatch.setattr(parity, "measure", measure)
    monkeypatch.setattr(parity, "require_transformers", lambda: None)
    return answers


@pytest.fixture
def run(finished_noisy_run):
    return finished_noisy_run


def test_what_is_in_the_folder(run, lab, quiet, measured):
    scores = run / "evals" / "step-000012"
    scores.mkdir(parents=True)
    row = {"task": "loss", "metric": "bits_per_byte", "value": 2.0, "standard_error": 0.1, "n": 9,
           "cases": "tokens", "chance": 8.0, "higher_is_better": False}  # fmt: skip
    (scores / "loss.json").write_text(json.dumps({"scores": [row]}))
    (lab / "out").mkdir()  # an empty folder is as good as none
    result = export_run(run, "out", checkpoint="last", screen=quiet, command="mixlab export ...")
    assert result.target.label == "Llama" and result.step == 12
    assert sorted(p.name for p in (lab / "out").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "parity.json",
        "run-config.yaml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    trained = open_trained(run, "last")  # with an average of the weights, which is what counts
    want = stock_tensors(result.target, trained.model)
    got = load_file(lab / "out/model.safetensors")
    assert got.keys() == want.keys() and all(torch.equal(got[n], t) for n, t in want.items())
    card = (lab / "out/README.md").read_text()
    for text in ("## Licence", "mixlab export ...", "1.804 to 2.196", "vLLM", "12 |", "FLOPs"):
        assert text in card, text
    assert json.loads((lab / "out/parity.json").read_text())["largest_logit_difference"] == 2e-6
    settings = json.loads((lab / "out/tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and "chat_template" not in settings


def test_places_that_are_taken(run, lab, quiet, measured):
    (lab / "full").mkdir()
    (lab / "full/mine.txt").write_text("mine")
    (lab / "file").write_text("mine")
    (lab / "link").symlink_to("nowhere")
    for place in ("full", "file", "link", "file/below"):
        with pytest.raises(OutputError, match=place):
            export_run(run, place, screen=quiet)
    assert (lab / "full/mine.txt").read_text() == (lab / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"largest_logit_difference": 0.01}, parity.ParityError),
        ({"largest_logit_difference": float("nan")}, parity.ParityError),
        ({"cached_against_uncached": 0.5}, parity.ParityError),
        ({"tokenizer_equal": False}, parity.ParityError),
        ({"chat_template_equal": False}, parity.ParityError),
        ({"error": "ValueError: no"}, parity.ParityError),
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=str,
)
def test_a_failed_export_leaves_nothing(run, lab, quiet, measured, answer, error):
    measured.append(answer)
    before = sorted(p.name for p in lab.iterdir())
    with pytest.raises(error):
        export_run(run, "deep/out", screen=quiet)
    assert list((lab / "deep").iterdir()) == []
    shutil.rmtree(lab / "deep")
    assert sorted(p.name for p in lab.iterdir()) == before


def edit_config(run: Path, change) -> None:
    tree = read_yaml(run / "config.yaml")
    change(tree)
    (run / "config.yaml").write_text(dump_yaml(tree))


def test_no_stock_home_is_said_by_name(run, quiet, measured):
    edit_config(run, lambda t: t["model"]["blocks"]["full"]["sequence_mixer"].update(rope_frac=0.5))
    with pytest.raises(NoStockHomeError, match=r"rope_frac = 0.5: .*--format mixlab --out out"):
        export_run(run, "out", screen=quiet)


def test_without_transformers(run, quiet, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"mixlab\[hf\]"):
        export_run(run, "out", screen=quiet)


def test_own_format_is_a_run_of_its_own(run, lab, quiet):
    export_run(run, "away/own", layout="mixlab", checkpoint="last", screen=quiet)
    want, got = open_trained(run, "last"), open_trained(lab / "away/own")
    assert want.generate("import ", max_new_tokens=8) == got.generate("import ", max_new_tokens=8)
    (lab / "away").rename(lab / "moved")
    assert open_trained(lab / "moved/own").tokenizer.hash == want.tokenizer.hash
    sizes = [p.stat().st_size for p in (lab / "moved/own").rglob("*.safetensors")]
    assert len(sizes) == 1, "weights, and nothing that only training needs"


@pytest.fixture
def imported(run, lab, quiet, measured, tiny_corpus):
    """The run as a stock folder and as a run that was made of it."""
    export_run(run, "stock", checkpoint="last", screen=quiet)
    text = [f"data.corpus={{kind: text, path: '{tiny_corpus}', document: file}}"]
    small = ["train.length=6 steps", "train.batch_size=2", "data.seq_len=16", "eval.n_tokens=64",
             "train.device=cpu", "train.precision=fp32", "sample.n=0", "eval.every=3"]  # fmt: skip
    return import_checkpoint("stock", overrides=text + small, screen=quiet)


def test_an_imported_run_is_the_run(run, lab, imported, no_pictures, quiet):
    assert imported.run.path == Path("runs/stock") and imported.target.label == "Llama"
    want, got = open_trained(run, "last"), open_trained("runs/stock")
    state = got.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in want.model.state_dict().items())
    assert got.tokenizer.hash == want.tokenizer.hash
    assert want.generate("import ", max_new_tokens=8) == got.generate("import ", max_new_tokens=8)
    export_run("runs/stock", "again", screen=quiet)
    assert (lab / "again/model.safetensors").read_bytes() == (
        lab / "stock/model.safetensors"
    ).read_bytes()


def test_an_imported_run_can_be_trained_on(imported, no_pictures, quiet):
    child = extend_run(Path("runs/stock"), n_steps=4, run_dir=Path("child"), screen=quiet)
    assert child.status == "finished"
    rates = [row["lr"] for row in child.run.read_jsonl("metrics.jsonl")]
    assert rates[0] == pytest.approx(5e-5 / 20), "the schedule begins at its beginning"
    first, last = (open_trained("child", which).model for which in ("last", 4))
    weights = open_trained("runs/stock").model.embed_tokens.weight
    assert not torch.equal(last.embed_tokens.weight, weights)
    assert torch.equal(first.norm.weight, last.norm.weight)
    resumed = resume_run(Path("runs/stock"), screen=quiet, command="test")  # in place, from step 0
    assert resumed.status == "finished" and resumed.summary["steps"] == 6


def test_an_import_is_checked_as_what_it_is(imported, lab, quiet):
    report = check(str(imported.run.path), screen=quiet)
    assert any("imported and has not been trained" in note for note in report.notes)
    assert not any("has changed" in note for note in report.notes)
    verdicts = {result.name: result.verdict for result in report.results}
    assert verdicts["split"] == verdicts["causality"] == "pass"


def test_an_altered_file_is_refused_by_name(imported, lab, quiet):
    """The export's own hashes tell; without them a changed bit of a weight looks like any other."""
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (lab / "stock" / name).read_bytes()
        (lab / "stock" / name).write_bytes(content[:-9] + b"#" + content[-8:])
        with pytest.raises(ModelFolderError, match=f"{name} was altered"):
            import_checkpoint("stock", name="other", screen=quiet)
        (lab / "stock" / name).write_bytes(content)


def test_names_and_overrides(imported, quiet):
    with pytest.raises(RunError, match="is a run already"):
        import_checkpoint("stock", name="stock", screen=quiet)
    again = import_checkpoint("stock", screen=quiet)
    assert again.run.path == Path("runs/stock-2")
    with pytest.raises(RunError, match=r"--name '\.\./x'"):
        import_checkpoint("stock", name="../x", screen=quiet)
    for key in ("model.n_layers=3", "data.tokenizer.kind=bpe", "kind=refine"):
        with pytest.raises(ConfigError, match="those of the checkpoint"):
            import_checkpoint("stock", name="other", overrides=[key], screen=quiet)
    with pytest.raises(ConfigError, match=r"train.lr"):
        import_checkpoint("stock", name="other", overrides=["train.lr=1"], screen=quiet)
    assert not Path("runs/other").exists()


def test_a_disk_that_fills_leaves_no_run(imported, quiet, monkeypatch):
    def full(*args):
        raise RunError("the disk is full")

    monkeypatch.setattr("mixlab.jobs.import_.fill_run_folder", full)
    with pytest.raises(RunError, match="full"):
        import_checkpoint("stock", name="other", screen=quiet)
    assert not Path("runs/other").exists()


def test_a_tampered_tokenizer_is_refused_on_the_way_on(imported, quiet):
    path = Path("runs/stock/tokenizer.json")
    tree = json.loads(path.read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:-1]
    path.write_text(json.dumps(tree))
    with pytest.raises(RunError, match="is not the run's tokenizer"):
        open_trained("runs/stock")


def test_a_prompt_read_both_ways_has_no_stock_home(run):
    config = open_trained(run).model.cfg
    assert verdict(config).target is not None
    found = verdict(config, prefix_lm=True)
    assert found.target is None and "prefix_lm" in found.reasons[0]


@pytest.mark.slow
def test_for_real(fork_server, run, lab):
    """The command, the other process, both precisions, and the way back."""
    pytest.importorskip("transformers")
    for out, options in (("a", []), ("b", ["--dtype", "bfloat16"])):
        done = fork_server.run(["export", run, "--out", out, *options], cwd=lab)
        assert done.code == 0, done.stderr
        found = json.loads((lab / out / "parity.json").read_text())
        assert found["largest_logit_difference"] <= 1e-4
        assert found["greedy_equal"] == found["greedy_prompts"] and found["tokenizer_equal"]
    assert 0 < found["rounding"]["largest_logit_difference"] < 0.5
    assert fork_server.run(["import", "a", "--name", "back"], cwd=lab).code == 0
    done = fork_server.run(["export", "runs/back", "--out", "c"], cwd=lab)
    assert done.code == 0, done.stderr
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (lab / "a" / name).read_bytes() == (lab / "c" / name).read_bytes(), name
