import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from mixlab.core.run_dir import RunDir
from mixlab.report.markdown import write_report
from mixlab.report.markup import code, fenced, plain, printable, table
from mixlab.report.plots import write_training_curves

_HOSTILE = "```\n# no heading\n````\x1b[31m\x00\u202e</details>| a | b |\r\n~~~\n"


def _parse(text: str) -> list:
    return MarkdownIt("commonmark").enable("table").parse(text)


def _write_all(run: RunDir) -> None:
    run.write_text(
        "config.yaml",
        "name: a-run\nseed: 7\ndata: {corpus: {kind: python-stdlib}, seq_len: 256}\n"
        "model: {d_model: 64, n_layers: 2, blocks: {full: {sequence_mixer: {kind: attention,"
        " n_heads: 4, window: null}, channel_mixer: {kind: mlp, d_ff: 128}}}}\n"
        "train: {batch_size: 8, optimizer: {kind: adamw, lr: 0.001}, precision: fp32}\n",
    )
    run.write_json(
        "environment.json",
        {
            "command": "mixlab train 'my recipe.yaml'",
            "started_utc": "2026-01-02T03:04:05+00:00",
            "python": "3.12.1",
            "packages": {"torch": "2.13.0"},
            "cpu": {"model": "Fast CPU", "n_usable_cores": 2},
            "memory_bytes": 8 * 2**30,
            "git": {"commit": "abc123", "is_dirty": True},
            "accelerator": {"device": "cpu"},
        },
    )
    split = {"documents": 10, "bytes": 2_000_000, "tokens": 500_000}
    run.write_json(
        "data.json",
        {
            "corpus": {"kind": "python-stdlib"},
            "read": {"documents": 31, "bytes": 6_100_000},
            "duplicates_dropped": {"documents": 1, "bytes": 10},
            "skipped": {"not UTF-8": {"count": 3, "first": ["a|b.py", "`x`.py"]}},
            "tokenizer": {"vocab_size": 512, "config": {"kind": "bpe"}},
            "overlap": {"n_words": 13, "validation": {"used": 0.021}},
            "splits": {"train": split, "validation": split},
        },
    )
    for step in range(1, 5):
        row = {"step": step, "tokens": 2048 * step, "flops": 1e9 * step, "elapsed_s": 0.5 * step}
        run.append("metrics.jsonl", {**row, "loss_nats": 7.0 - step, "tokens_per_s": 4096.0})
    for step, loss in ((2, 4.0), (4, 4.5)):
        run.append(
            "evals.jsonl",
            {
                "step": step,
                "tokens": 2048 * step,
                "split": "validation",
                "loss_nats": loss,
                "accuracy": 0.25,
                "perplexity": 2.718281828**loss,
                "bits_per_byte": 1.5,
                "n_tokens": 100_096,
                "weights": "raw",
            },
        )
    run.append(
        "samples.jsonl", {"prompt": "def ", "text": _HOSTILE, "step": 4, "settings": {"seed": 1}}
    )
    run.write_json(
        "summary.json",
        {
            "status": "finished",
            "steps": 4,
            "tokens": 8192,
            "flops": 4e9,
            "train_s": 125.0,
            "n_params": 1_020_000,
            "context": {
                "ln_vocab_nats": 6.238,
                "unigram_entropy_nats": 5.0,
                "bytes_per_target": 4.0,
            },
            "notes": ["Validation is *small*."],
        },
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "a-run")
    _write_all(made)
    return made


def test_report_holds_what_a_reader_needs(run: RunDir):
    write_training_curves(run)
    text = write_report(run).read_text()
    for wanted in (
        "1.02M parameters",
        "`python-stdlib`",
        "6.10 MB",
        "2 min 05 s",
        "best validation loss is 4.000 nats per token, 1.000 below the unigram entropy (5.000)",
        "last (step 4)",
        "best (step 2)",
        "| loss, nats per token | 4.500 | 4.000 | 5.000 | 6.238 |",
        "| bits per byte | 1.500 | 1.500 | 1.803 | 2.250 |",  # 5 / ln 2 / 4 and 6.238 / ln 2 / 4
        "![Training curves](plots/training_curves.png)",
        "mixlab train 'my recipe.yaml'",
        "4.0e9",
        "Fast CPU, 2 cores",
        "`attention`: n_heads 4 |",  # what is switched off is left out
        "| validation | 10 | 2.00 | 500k | 2.1 % |",
        "3 x not UTF-8",
        "abc123 (changed)",
        r"Validation is \*small\*.",
        "one seed (7)",
    ):
        assert wanted in text, wanted
    assert "> **" not in text  # no warning on a finished run


def test_samples_cannot_leave_their_block(run: RunDir):
    tokens = _parse(write_report(run).read_text())
    blocks = [token.content for token in tokens if token.type == "fence"]
    assert "```\n# no heading\n````\ufffd[31m\ufffd\ufffd</details>| a | b |\n~~~\n\n" in blocks
    headings = [b.content for a, b in itertools.pairwise(tokens) if a.type == "heading_open"]
    assert headings == [
        "Run `a-run`",
        *("Results", "Curves", "Samples", "Model", "Data", "Training", "Do it again", "Notes"),
    ]
    assert not [token for token in tokens if token.type == "html_block"]


def test_every_table_row_has_as_many_cells_as_its_header(run: RunDir):
    tokens = _parse(write_report(run).read_text())
    rows: list[int] = []
    for token in tokens:
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append(0)
        elif token.type in ("th_open", "td_open"):
            rows[-1] += 1
        elif token.type == "table_close":
            assert len(rows) > 1 and len(set(rows)) == 1


_FILES = [
    *("config.yaml", "environment.json", "data.json", "summary.json"),
    *("metrics.jsonl", "evals.jsonl", "samples.jsonl"),
]


@pytest.mark.parametrize("missing", [*([name] for name in _FILES), _FILES])
def test_a_missing_file_leaves_a_report(run: RunDir, missing: list[str]):
    for name in missing:
        (run.path / name).unlink()
    text = write_report(run).read_text()
    assert text.startswith("# Run `a-run`") and "## Notes" in text
    if "evals.jsonl" in missing:
        assert "No evaluation was recorded." in text and "never evaluated" in text
    if missing == ["summary.json"]:
        assert "This run has no summary" in text and "--resume" in text
        assert "| steps | 4 |" in text and "4.000" in text  # taken from the logs


@pytest.mark.parametrize("name", _FILES)
def test_a_damaged_file_is_named(run: RunDir, name: str):
    (run.path / name).write_bytes(b"{\xff\n{\n")
    text = write_report(run).read_text()
    assert "Not in this report" in text and name in text


def test_every_leaf_may_be_null(run: RunDir):
    def nulled(value):
        if isinstance(value, dict):
            return {key: nulled(item) for key, item in value.items()}
        return [nulled(item) for item in value] if isinstance(value, list) else None

    for name in ("environment.json", "data.json", "summary.json"):
        run.write_json(name, nulled(run.read_json(name)))
    for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl"):
        rows = run.read_jsonl(name)
        run.truncate_jsonl(name, 0)
        for row in rows:
            run.append(name, nulled(row))
    write_training_curves(run)
    assert "never evaluated" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (
            {"status": "interrupted", "steps": 3, "planned_steps": 9},
            "is interrupted at step 3 of 9",
        ),
        (
            {"status": "failed", "error": "The loss is *nan* at step 3."},
            r"failed: The loss is \*nan",
        ),
        (
            {"status": "finished", "parent": {"run": "runs/a", "step": 400}},
            "continues `runs/a` from",
        ),
    ],
)
def test_the_state_of_the_run_is_told(run: RunDir, summary: dict, sentence: str):
    run.write_json("summary.json", summary)
    assert sentence in write_report(run).read_text()


def test_a_model_that_learnt_nothing_is_not_praised(run: RunDir):
    run.write_json("summary.json", {"status": "finished", "context": {"unigram_entropy_nats": 3.0}})
    assert "not below the unigram entropy (3.000)" in write_report(run).read_text()


def test_resumed_sittings_are_counted(run: RunDir):
    for step in (0, 2):
        run.append("sittings.jsonl", {"from_step": step})
    assert "resumed: from step 2." in write_report(run).read_text()


def test_report_needs_no_torch(run: RunDir):
    code = (
        "import sys; from mixlab.core.run_dir import RunDir\n"
        "from mixlab.report.markdown import write_report\n"
        "write_report(RunDir(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)


# --- markup


@pytest.mark.parametrize(
    "text", ["", "a`b", "``", "`", " ", " a ", "a ", "a|b", "x\ny", "````", "\\", "<b>"]
)
def test_any_text_survives_as_code_and_as_plain_text(text: str):
    (inline,) = [token for token in _parse(f"x{plain(text)}") if token.type == "inline"]
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    (inline,) = [token for token in _parse(code(text)) if token.type == "inline"]
    expected = text.replace("\n", "\\n") or "(empty)"
    assert "".join(child.content for child in inline.children) == expected
    (block,) = [token for token in _parse(fenced(text)) if token.type == "fence"]
    assert block.content == text + "\n"


def test_a_bar_inside_a_cell_does_not_end_it():
    tokens = _parse(table(["a", "b"], [[code("x|y"), plain("p|q")]]))
    cells = [b.content for a, b in itertools.pairwise(tokens) if a.type == "td_open"]
    assert cells == ["`x|y`", "p|q"] or cells == ["`x|y`", r"p\|q"]


def test_printable_keeps_text_of_any_language():
    text = "a\tb\n\u00fc \u5b57 \U0001f600"
    assert printable(text) == text
    assert json.loads(json.dumps(printable("\ud800"))) == "\ufffd"
