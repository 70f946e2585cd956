"""Whatever a person gets wrong: one paragraph on standard error that says what and what to do."""

import pytest

ATTENTION = "model.blocks.full.sequence_mixer"
CASES = {
    "unknown recipe": (["train", "quikstart"], ["quikstart", "Did you mean 'quickstart'?"]),
    "unknown key": (["train", "TINY", "train.batchsize=8"], ["train.batchsize", "'batch_size'"]),
    "unknown top key": (["train", "TINY", "trian.batch_size=8"], ["trian", "'train'"]),
    "unknown kind": (
        ["train", "TINY", f"{ATTENTION}.kind=atention"],
        [f"{ATTENTION}.kind = 'atention'", "Did you mean 'attention'?"],
    ),
    "unknown corpus": (["train", "TINY", "data.corpus.kind=txt"], ["data.corpus.kind", "'text'"]),
    "unknown choice": (["train", "TINY", "train.device=gpu"], ["train.device = 'gpu'", "cuda"]),
    "below its range": (["train", "TINY", "train.batch_size=0"], ["train.batch_size = 0"]),
    "above its range": (["train", "TINY", "model.dropout=1"], ["model.dropout = 1", "less than 1"]),
    "not a number": (["train", "TINY", "train.batch_size=many"], ["train.batch_size = 'many'"]),
    "not finite": (["train", "TINY", "train.optimizer.lr=.nan"], ["train.optimizer.lr = nan"]),
    "no length": (["train", "TINY", "train.length=forever"], ["train.length", "400 steps"]),
    "heads do not divide": (
        ["train", "TINY", f"{ATTENTION}.n_heads=6", f"{ATTENTION}.n_kv_heads=4"],
        [f"{ATTENTION}.n_kv_heads = 4", "divisor of n_heads = 6", "1, 2, 3, 6"],
    ),
    "rotary width is odd": (
        ["train", "TINY", f"{ATTENTION}.head_dim=7"], [f"{ATTENTION}.rope_frac", "even number"]
    ),
    "micro-batch does not divide": (
        ["train", "TINY", "train.micro_batch_size=3"],
        ["train.micro_batch_size = 3", "divisor of batch_size = 4"],
    ),
    "sequence too long": (
        ["train", "TINY", "data.seq_len=65"], ["data.seq_len = 65", "model.max_seq_len = 64"]
    ),
    "vocabulary asked too large": (
        ["train", "TINY", "model.vocab_size=200"],
        ["data.tokenizer.vocab_size = 300", "model.vocab_size = 200"],
    ),
    "more than fits into memory": (
        ["train", "TINY", "model.d_model=100000000"],
        ["model = ", "parameters", "of memory", "Lower model.d_model"],
    ),
    "too many threads": (["train", "TINY", "train.threads=99999999999"], ["train.threads = 9999"]),
    "half an override": (["train", "TINY", "train.batch_size"], ["KEY=VALUE"]),
    "a value under a value": (["train", "TINY", "seed.x=1"], ["seed.x", "Set seed"]),
    "bad YAML in a value": (["train", "TINY", "model=[1"], ["the value of model", "YAML"]),
    "empty prompt in a recipe": (["train", "TINY", "sample.prompts=['']"], ["sample.prompts.0"]),
    "prompt too long in a recipe": (
        ["train", "TINY", f"sample.prompts=['{'a b c ' * 64}']"],
        ["sample.prompts.0", "model.max_seq_len = 64"],
    ),
    "no such text": (
        ["train", "TINY", "data.corpus.path=nowhere"], ["data.corpus.path", "nowhere"]
    ),
    "empty corpus": (["train", "TINY", "data.corpus.path=empty"], ["empty"]),
    "empty file": (["train", "TINY", "data.corpus.path=blank.txt"], ["more text"]),
    "less than one batch": (
        ["train", "TINY", "train.batch_size=100000"], ["train.batch_size=1235", "more text"]
    ),
    "no recipe": (["train"], ["mixlab list recipes"]),
    "no such file": (["train", "no/such.yaml"], ["no/such.yaml", "cannot be read"]),
    "a folder as recipe": (["train", "empty"], ["is a folder"]),
    "at-step alone": (["train", "TINY", "--at-step", "3"], ["--at-step 3", "--resume"]),
    "run-dir with resume": (["train", "--resume", "x", "--run-dir", "y"], ["--run-dir y"]),
    "resume of nothing": (["train", "--resume", "runs/x"], ["there is no run folder runs/x"]),
    "extend of nothing": (["extend", "runs/x", "--steps", "4"], ["there is no run folder runs/x"]),
    "show of nothing": (["show", "quikstart"], ["Did you mean 'quickstart'?"]),
    "generate from nothing": (["generate", "runs/x", "--prompt", "a"], ["no run folder runs/x"]),
    "no prompt": (["generate", "RUN"], ["no prompt was given", "--prompt TEXT", "--file FILE"]),
    "no file of prompts": (["generate", "RUN", "--file", "x.txt"], ["--file x.txt", "No such"]),
    "empty stop text": (["generate", "RUN", "--prompt", "a", "--stop", ""], ["stop = ['']"]),
    "more than all": (["generate", "RUN", "--prompt", "a", "--min-p", "2"], ["min_p = 2.0"]),
    "penalty of nothing": (
        ["generate", "RUN", "--prompt", "a", "--repetition-penalty", "0"],
        ["repetition_penalty = 0.0"],
    ),
    "depth of a plain model": (
        ["generate", "RUN", "--prompt", "a", "--depth", "3"], ["depth = 3", "looped"]
    ),
    "second prompt too long": (
        ["generate", "RUN", "--prompt", "a", "--prompt", "a b c " * 40], ["max_seq_len = 64"]
    ),
    "longer than the context": (
        ["generate", "RUN", "--prompt", "a", "--window", "--max-new-tokens", "99"],
        ["99 new ones", "at most 63 tokens"],
    ),
    "chat with nothing": (["chat", "runs/x"], ["no run folder runs/x"]),
    "chat without words": (["chat", "RUN", "--max-new-tokens", "0"], ["max_new_tokens = 0"]),
    "chat of a plain text with a system": (
        ["chat", "RUN", "--system", "x"], ["system message", "mixlab sft"]
    ),
    "prompt too long": (
        ["generate", "RUN", "--prompt", "a b c " * 40], ["model.max_seq_len = 64", "Shorten"]
    ),
    "no tokens": (
        ["generate", "RUN", "--prompt", "a", "--max-new-tokens", "0"], ["max_new_tokens = 0"]
    ),
    "cold": (["generate", "RUN", "--prompt", "a", "--temperature", "-1"], ["temperature = -1.0"]),
    "no choice": (["generate", "RUN", "--prompt", "a", "--top-k", "0"], ["top_k = 0"]),
    "no mass": (["generate", "RUN", "--prompt", "a", "--top-p", "0"], ["top_p = 0.0"]),
    "no such checkpoint": (
        ["generate", "RUN", "--prompt", "a", "--checkpoint", "7"], ["'7'", "best, last", "12"]
    ),
    "a seed too large": (["generate", "RUN", "--prompt", "a", "--seed", str(2**70)], ["seed"]),
    "not UTF-8": (["generate", "RUN", "--prompt", "\udcff"], ["prompt", "UTF-8"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(fork_server, tiny_recipe, tmp_path_factory):
    """A finished run, an empty folder, and an empty file."""
    folder = tmp_path_factory.mktemp("place")
    result = fork_server.run(["train", tiny_recipe, "--run-dir", "run"], cwd=folder)
    assert result.code == 0, result.stderr
    (folder / "empty").mkdir()
    (folder / "blank.txt").write_text("  \n")
    return folder


def assert_refused(result, fragments):
    assert result.code == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *notes, last = result.stderr.strip().split("\n")
    assert last.startswith("mixlab "), result.stderr
    assert not any(note.startswith("mixlab ") for note in notes), "more than one paragraph"
    for fragment in fragments:
        assert fragment in last


@pytest.mark.parametrize("name", CASES)
def test_is_one_paragraph_with_a_way_out(name, place, fork_server, tiny_recipe):
    words, fragments = CASES[name]
    names = {"TINY": str(tiny_recipe), "RUN": "run"}
    result = fork_server.run([names.get(word, word) for word in words], cwd=place)
    assert_refused(result, fragments)
    assert not (place / "runs").exists(), "no run folder is left behind"


def test_a_tokenizer_that_does_not_fit_the_model(place, fork_server, tiny_recipe):
    """A ready-made tokenizer: how many entries it has is known once it has been read."""
    words = ["train", tiny_recipe, "data.tokenizer={kind: file, path: run/tokenizer.json}"]
    result = fork_server.run([*words, "model.vocab_size=128"], cwd=place)
    assert_refused(result, ["model.vocab_size = 128", "Set model.vocab_size="])


def test_a_gpu_that_is_not_there(place, fork_server, tiny_recipe):
    words = ["train", tiny_recipe, "train.device=cuda"]
    result = fork_server.run(words, cwd=place, CUDA_VISIBLE_DEVICES="")
    assert_refused(result, ["train.device = 'cuda'", "train.device=auto"])


def test_a_recipe_that_is_no_yaml(place, fork_server):
    (place / "bad.yaml").write_text("a: [1\n")
    assert_refused(fork_server.run(["train", "bad.yaml"], cwd=place), ["bad.yaml", "YAML"])
    (place / "bad.yaml").write_bytes(b"\xff\xfe")
    assert_refused(fork_server.run(["train", "bad.yaml"], cwd=place), ["bad.yaml", "UTF-8"])
    (place / "bad.yaml").write_text("- a\n")
    assert_refused(fork_server.run(["train", "bad.yaml"], cwd=place), ["bad.yaml", "mapping"])


def test_a_run_folder_that_cannot_be_written(place, fork_server, tiny_recipe):
    words = ["train", tiny_recipe, "--run-dir", "/proc/mixlab/run"]
    assert_refused(fork_server.run(words, cwd=place), ["/proc/mixlab/run", "cannot be made"])


def test_a_run_folder_that_exists(place, fork_server, tiny_recipe):
    result = fork_server.run(["train", tiny_recipe, "--run-dir", "run"], cwd=place)
    assert_refused(result, ["run folder run", "--resume run"])


def test_resume_of_a_finished_run(place, fork_server):
    result = fork_server.run(["train", "--resume", "run"], cwd=place)
    assert_refused(result, ["finished at step 12", "mixlab extend run"])


def test_a_file_that_is_not_utf8_is_skipped_and_counted(
    fork_server, tiny_recipe, tiny_corpus, tmp_path
):
    words = ["train", tiny_recipe, f"data.corpus.path=[{tiny_corpus}, more]"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "latin.txt").write_bytes("Gr\u00fc\u00dfe\n".encode("latin-1") * 50)
    result = fork_server.run([*words, "train.length=1", "--run-dir", "run"], cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "Skipped: 1 x not UTF-8" in result.stderr
    assert "UTF-8" in (tmp_path / "run" / "report.md").read_text()
