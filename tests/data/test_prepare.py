"""From a config to shards and manifest, end to end."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import yaml
from data_samples import random_text
from tokenizers import models, pre_tokenizers

import mixlab
from mixlab.core.config import decode, digest, merge, to_tree
from mixlab.core.errors import DataError
from mixlab.data.config import DataConfig
from mixlab.data.context import context_figures, evaluation_targets, unigram_entropy_nats
from mixlab.data.loader import Loader
from mixlab.data.prepare import prepare


def as_json(data) -> str:
    return json.dumps(data.manifest, sort_keys=True)


def test_the_manifest_tells_what_was_done(folder, data_config, tmp_path, recorder):
    (folder / "zz_copy.txt").write_bytes((folder / "doc07.txt").read_bytes())
    (folder / "zz_bad.txt").write_bytes(b"\xff")
    data = prepare(data_config(folder), tmp_path / "cache", recorder)
    manifest = data.manifest
    sizes = [len(path.read_bytes()) for path in folder.glob("doc*.txt")]
    copy = len((folder / "zz_copy.txt").read_bytes())
    assert manifest["read"] == {"documents": 41, "bytes": sum(sizes) + copy}
    assert manifest["skipped"] == {"not UTF-8": {"count": 1, "first": ["zz_bad.txt"]}}
    assert manifest["duplicates_dropped"] == {
        "documents": 1,
        "bytes": copy,
        "first": ["zz_copy.txt"],
    }
    assert sum(s["documents"] for s in manifest["splits"].values()) == 40
    assert sum(s["bytes"] for s in manifest["splits"].values()) == sum(sizes)
    for name, facts in manifest["splits"].items():
        assert facts["tokens"] == data.split(name).n_tokens
        assert facts["bytes_per_token"] == facts["bytes"] / facts["tokens"]
        # Byte-level: the bytes that the tokens stand for are the bytes of the split.
        shards = data.split(name)
        assert shards.token_bytes[shards.tokens].sum(dtype=np.float64) == facts["bytes"]
    assert any("zz_bad.txt" in note for note in recorder.notes)
    assert any("Corpus: 41 documents" in note for note in recorder.notes)
    assert any(" kB; 1 exact duplicate dropped" in note for note in recorder.notes)
    assert any("Overlap of validation" in note for note in recorder.notes)
    for total, done in recorder.tasks.values():
        assert 0 < done <= total


def test_the_same_text_gives_the_same_data(folder, data_config, tmp_path, monkeypatch):
    """Other place, other names, other order, other cache: same manifest but for the names."""
    monkeypatch.chdir(folder.parent)
    first = prepare(data_config("corpus"), tmp_path / "cache")
    shutil.copytree(folder, tmp_path / "elsewhere" / "corpus")
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = prepare(data_config("corpus"), tmp_path / "cache2")
    assert as_json(first) == as_json(second)
    for i, path in enumerate(sorted(Path("corpus").iterdir(), reverse=True)):
        path.rename(path.with_name(f"{i:03d}.txt"))
    third = prepare(data_config("corpus"), tmp_path / "cache")
    assert third.manifest["splits"] == first.manifest["splits"]
    assert third.manifest["content_hash"] == first.manifest["content_hash"]
    assert np.array_equal(third.split("train").tokens, first.split("train").tokens)


def test_a_second_run_takes_everything_from_the_cache(folder, data_config, tmp_path, recorder):
    first = prepare(data_config(folder), tmp_path / "cache")
    second = prepare(data_config(folder), tmp_path / "cache", recorder)
    assert not recorder.tasks
    assert as_json(first) == as_json(second)


def test_a_tokenizer_that_stayed_small_says_so_on_every_run(
    folder, data_config, tmp_path, recorder
):
    for n_runs in (1, 2):
        data = prepare(data_config(folder, vocab_size=100_000), tmp_path / "cache", recorder)
        notes = [note for note in recorder.notes if "100000 were asked for" in note]
        assert len(notes) == n_runs
        assert f"{data.tokenizer.vocab_size} tokens only" in notes[-1]
        facts = data.manifest["tokenizer"]
        assert facts["vocab_size"] < facts["vocab_size_asked"] == 100_000


def test_a_changed_source_is_noticed(folder, data_config, tmp_path):
    first = prepare(data_config(folder), tmp_path / "cache")
    (folder / "doc00.txt").write_text(random_text(1000))
    second = prepare(data_config(folder), tmp_path / "cache")
    assert first.manifest["content_hash"] != second.manifest["content_hash"]


def test_a_truncated_shard_is_named(folder, data_config, tmp_path):
    prepare(data_config(folder), tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "tokens").glob("*/train.tokens.bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.tokens\.bin of the token shards is damaged"):
        prepare(data_config(folder), tmp_path / "cache")


def test_an_empty_corpus(tmp_path, data_config):
    (tmp_path / "void.txt").touch()
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"bad\.txt: .*byte 0 is 0xff.*1 x not UTF-8 .*1 x empty"):
        prepare(data_config(tmp_path / "*.txt"), tmp_path / "cache")


@pytest.mark.parametrize("text", ["a" * 1_000_000, "GET / 200 OK\n" * 50_000], ids=["a", "log"])
def test_text_that_repeats_itself_is_told_so(text, tmp_path, data_config):
    """Smaller passages would be copies of each other all the more: they are not advised."""
    path = tmp_path / "one.txt"
    path.write_text(text)
    message = r"the text repeats itself: only \d of its \d+ passages (is|are) distinct"
    with pytest.raises(DataError, match=message) as error:
        prepare(data_config(path, document="auto"), tmp_path / "cache")
    assert "passage_bytes" not in str(error.value)


def test_a_corpus_smaller_than_a_sequence(folder, data_config, tmp_path):
    with pytest.raises(DataError, match=r"data\.seq_len = 100000: .*\(0 sequences\)"):
        prepare(data_config(folder, seq_len=100_000), tmp_path / "cache")


def test_the_way_out_of_a_short_text_works_at_the_first_try(tmp_path, data_config):
    path = tmp_path / "short.txt"
    path.write_text(random_text(3, 600))
    assert path.stat().st_size < 3_500
    with pytest.raises(DataError, match=r"train \d+ tokens .*validation .*test") as error:
        prepare(data_config(path, document="auto", seq_len=5000), tmp_path / "cache")
    seq_len = int(re.search(r"Set data\.seq_len=(\d+)", str(error.value))[1])
    data = prepare(data_config(path, document="auto", seq_len=seq_len), tmp_path / "cache")
    with pytest.raises(DataError, match=r"data\.seq_len"):
        prepare(data_config(path, document="auto", seq_len=seq_len + 1), tmp_path / "cache")
    with pytest.raises(DataError, match=r"and 1000 in train \(train\.batch_size\)") as error:
        data.require_sequences("train", 1000)
    ways = re.search(
        r"data\.seq_len=(\d+) or less, or set train\.batch_size=(\d+)", str(error.value)
    )
    data.require_sequences("train", int(ways[2]))
    data.seq_len = int(ways[1])
    data.require_sequences("train", 1000)
    assert data.split("train").n_tokens == int(
        re.search(r"train (\d+) tokens", str(error.value))[1]
    )


def test_a_corpus_smaller_than_a_batch(prepared):
    n_windows = prepared.split("train").n_windows(prepared.seq_len)
    prepared.require_sequences("train", n_windows)
    with pytest.raises(DataError, match=rf"and {n_windows + 1} in train \(train\.batch_size\)"):
        prepared.require_sequences("train", n_windows + 1)


@pytest.mark.parametrize(
    "text",
    [
        random_text(5, 8000),
        random_text(6, 8000).replace("\n", "\r\n"),
        random_text(7, 8000).replace("\n", " "),
        "".join(f"{i * 7919 % 100003}," for i in range(9000)),
        "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(16000)),
    ],
    ids=["lines", "crlf", "one line", "no white space", "three bytes each"],
)
def test_one_file_of_any_kind_is_enough(text, tmp_path, data_config):
    path = tmp_path / "one.txt"
    path.write_bytes(text.encode())
    data = prepare(data_config(path, document="auto"), tmp_path / "cache")
    assert data.manifest["source"]["document"] == "passage"
    assert all(facts["documents"] >= 2 for facts in data.manifest["splits"].values())


def test_text_with_eos_in_it_does_not_end_documents(folder, data_config, tmp_path):
    for path in folder.iterdir():
        path.write_text(path.read_text() + "<|endoftext|> and so on")
    data = prepare(data_config(folder), tmp_path / "cache")
    for name in ("train", "validation", "test"):
        shards = data.split(name)
        assert np.count_nonzero(shards.tokens == shards.eos_id) == shards.n_documents


def word_tokenizer(path: Path, n_words: int) -> None:
    vocabulary = {f"w{i}": i for i in range(n_words)} | {"[UNK]": n_words, "</s>": n_words + 1}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(path))


def with_tokenizer(config, path) -> DataConfig:
    tree = to_tree(config) | {"tokenizer": {"kind": "file", "path": str(path)}}
    return decode(DataConfig, tree)


def test_a_large_vocabulary_takes_four_bytes_per_token(folder, data_config, tmp_path):
    word_tokenizer(tmp_path / "words.json", 70_000)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.write_text(" ".join(f"w{(i * 301 + k) % 70_000}" for k in range(69_000, 69_300)))
    data = prepare(with_tokenizer(data_config(folder), tmp_path / "words.json"), tmp_path / "cache")
    assert data.split("train").tokens.dtype == np.uint32
    assert data.split("train").tokens.max() > 1 << 16
    shards = data.split("validation")
    facts = data.manifest["splits"]["validation"]
    # Not byte-level: the split's own mean, so that its tokens still add up to its bytes.
    total = shards.token_bytes[shards.tokens].sum(dtype=np.float64)
    assert total == pytest.approx(facts["bytes"], rel=1e-6)  # float32 mean


def test_a_changed_tokenizer_file_is_noticed(folder, data_config, tmp_path):
    config = with_tokenizer(data_config(folder), tmp_path / "words.json")
    hashes = []
    for n_words in (10, 20):
        word_tokenizer(tmp_path / "words.json", n_words)
        hashes.append(prepare(config, tmp_path / "cache").manifest["tokenizer"]["hash"])
    assert hashes[0] != hashes[1]


def test_a_tokenizer_whose_text_makes_eos_is_refused(folder, data_config, tmp_path):
    """A word-level vocabulary in which EOS is an ordinary word of the text."""
    word_tokenizer(tmp_path / "words.json", 10)
    tree = to_tree(data_config(folder))
    tree["tokenizer"] = {"kind": "file", "path": str(tmp_path / "words.json"), "eos": "w3"}
    for path in folder.iterdir():
        path.write_text(path.read_text() + " w3 ")
    with pytest.raises(DataError, match=r"gave the token 'w3'"):
        prepare(decode(DataConfig, tree), tmp_path / "cache")


def test_context_figures_are_of_the_very_targets_of_the_evaluation(prepared):
    shards, seq_len = prepared.split("validation"), prepared.seq_len
    n_windows = shards.n_windows(seq_len) - 1
    batches = list(Loader(shards, seq_len, 0).window_batches(n_windows, 3))
    targets = np.concatenate([batch.targets.numpy().ravel() for batch in batches])
    assert np.array_equal(targets, evaluation_targets(shards, seq_len, n_windows))
    counts = Counter(targets.tolist())
    entropy = -sum(n / len(targets) * math.log(n / len(targets)) for n in counts.values())
    figures = context_figures(shards, seq_len, n_windows)
    assert figures["unigram_entropy_nats"] == pytest.approx(entropy, rel=1e-12)  # summation order
    assert figures["ln_vocab_nats"] == math.log(prepared.tokenizer.vocab_size)
    text = prepared.tokenizer.decode([t for t in targets.tolist() if t != shards.eos_id])
    n_bytes = len(text.encode())
    assert figures["bytes_per_target"] == pytest.approx(n_bytes / len(targets), rel=1e-12)


def test_entropy_by_hand():
    assert unigram_entropy_nats(np.array([3, 3, 3, 3])) == 0
    assert unigram_entropy_nats(np.array([[0, 1], [2, 7]])) == pytest.approx(math.log(4))


def test_the_packaged_data_presets_are_valid():
    folder = Path(mixlab.__file__).parent / "recipes" / "data"
    base = {"corpus": {"kind": "python-stdlib"}, "tokenizer": {"kind": "bpe"}, "seq_len": 64}
    presets = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert {"stdlib", "packages", "cosmopedia"} <= set(presets)
    for tree in presets.values():
        config = decode(DataConfig, merge(base, tree))
        assert decode(DataConfig, to_tree(config)) == config
        assert digest(to_tree(config))


def test_preparing_does_not_import_torch():
    code = "import sys, mixlab.data.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
