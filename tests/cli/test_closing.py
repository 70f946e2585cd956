"""What a run suggests to do next can be pasted into a shell and suits its text."""

import shlex
from types import SimpleNamespace

import pytest

from mixlab.cli.closing import closing_text
from mixlab.core.run_dir import RunDir

SUMMARY = {
    "status": "finished", "n_params": 9, "tokens": 9, "train_s": 1.0, "steps": 12,
    "planned_steps": 12, "context": {"unigram_entropy_nats": 2.0, "ln_vocab_nats": 3.0},
    "final": {"loss_nats": 1.0, "bits_per_byte": 1.0, "accuracy": 0.5, "perplexity": 2.7},
}  # fmt: skip


def commands(folder, corpus="text", prompt=None, status="finished"):
    """The words of each suggested mixlab command."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.write_json("data.json", {"corpus": {"kind": corpus}})
    if prompt is not None:
        run.append("samples.jsonl", {"prompt": prompt, "text": "..."})
    result = SimpleNamespace(run=run, summary=SUMMARY, status=status)
    lines = closing_text(result).replace("Go on with: ", "  ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("  mixlab ")]


@pytest.mark.parametrize("name", ["plain", "two words", "it's", "$HOME;x"])
def test_paths_are_one_word(name, tmp_path):
    folder = tmp_path / name / "run"
    generate, extend, _ = commands(folder)
    assert generate[2] == str(folder) and extend[2:] == [str(folder), "--steps", "24"]
    (resume,) = commands(tmp_path / name / "stopped", status="interrupted")
    assert resume == ["mixlab", "train", "--resume", str(tmp_path / name / "stopped")]


@pytest.mark.parametrize(
    ("corpus", "prompt", "want"),
    [
        ("python-stdlib", "def a(", "import "),
        ("text", None, "import "),
        ("text", "Alice was beginning to get very tired of", "Alice was beginning to"),
        ("text", 'It\'s "so"\n  $cheap', 'It\'s "so" $cheap'),
        ("jsonl", "- item", " - item"),
        ("jsonl", "x" * 99, "x" * 24),
    ],
)
def test_the_prompt_suits_the_text(corpus, prompt, want, tmp_path):
    generate = commands(tmp_path / "run", corpus, prompt)[0]
    assert generate[3:] == ["--prompt", want]
