"""The frozen copy: duplicates, hashes, hostile documents, and memory that does not grow."""

import json
import tracemalloc

import numpy as np
import pytest
from data_samples import random_text

from mixlab.core.config import decode
from mixlab.core.errors import DataError
from mixlab.data import files
from mixlab.data import snapshot as snapshot_module
from mixlab.data.corpora import CORPORA
from mixlab.data.progress import Silent
from mixlab.data.snapshot import document_hash, take_snapshot


def jsonl(tmp_path, texts):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return decode(CORPORA["jsonl"], {"kind": "jsonl", "path": str(path)})


def test_it_holds_each_content_once_in_order_of_reading(tmp_path):
    texts = ["b\u00e9ta", "alpha", "b\u00e9ta", "gamma \U0001f600\0", "alpha"]
    snapshot = take_snapshot(jsonl(tmp_path, texts), tmp_path / "cache", Silent())
    assert list(snapshot.texts(np.arange(len(snapshot)))) == [
        "b\u00e9ta",
        "alpha",
        "gamma \U0001f600\0",
    ]
    assert [snapshot.name(i) for i in range(3)] == [f"rows.jsonl:{i}" for i in (1, 2, 4)]
    assert snapshot.sizes.tolist() == [5, 5, 11]
    assert snapshot.facts["duplicates_dropped"]["documents"] == 2
    assert snapshot.facts["duplicates_dropped"]["first"] == ["rows.jsonl:3", "rows.jsonl:5"]
    hashes = [document_hash(snapshot.text(i).encode()) for i in range(3)]
    assert [bytes(row) for row in snapshot.hashes] == hashes
    assert snapshot.hash_order().tolist() == sorted(range(3), key=lambda i: hashes[i])


def test_the_content_hash_is_of_the_set(tmp_path):
    def content_hash(i, texts):
        folder = tmp_path / str(i)
        folder.mkdir()
        return take_snapshot(jsonl(folder, texts), folder / "cache", Silent()).content_hash

    first = content_hash(0, ["a", "b", "c"])
    assert content_hash(1, ["c", "a", "a", "b"]) == first
    assert content_hash(2, ["a", "b"]) != first
    assert content_hash(3, ["a", "b", "c", "d"]) != first


def test_a_lone_surrogate_and_a_giant_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, "MAX_DOCUMENT_BYTES", 100)
    corpus = jsonl(tmp_path, ["fine", "half \ud800 pair", "x" * 101, "y" * 100])
    snapshot = take_snapshot(corpus, tmp_path / "cache", Silent())
    assert len(snapshot) == 2
    reasons = {reason: entry["first"] for reason, entry in snapshot.facts["skipped"].items()}
    assert reasons == {
        "not valid Unicode (a lone surrogate)": ["rows.jsonl:2"],
        "larger than 32 MiB": ["rows.jsonl:3"],
    }


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"corpus is empty.*2 x empty \(first: rows\.jsonl:1\)"):
        take_snapshot(jsonl(tmp_path, ["", ""]), tmp_path / "cache", Silent())


ENCODED = {
    "latin1": ("caf\xe9".encode("latin-1"), r"byte 3 is 0xe9.*iconv -f LATIN1 -t UTF-8"),
    "utf16": ("words".encode("utf-16"), r"byte 0 is 0xff.*iconv -f UTF-16 -t"),
    "utf16le": ("words".encode("utf-16-le"), r"byte 1 is NUL.*iconv -f UTF-16LE -t"),
    "binary": (b"words\0", r"byte 5 is NUL\. Such a file is no text"),
    "cut short": (b"x" * 70 + b"\xe2\x82", r"byte 70 is 0xe2"),
    "behind a mark": (b"\xef\xbb\xbfab\xff", r"byte 5 is 0xff"),
}


@pytest.mark.parametrize("document", ["file", "passage"])
@pytest.mark.parametrize(("data", "message"), ENCODED.values(), ids=ENCODED.keys())
def test_another_encoding_is_told_with_path_and_place(
    data, message, document, tmp_path, monkeypatch
):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    tree = {"kind": "text", "path": str(path), "document": document}
    corpus = decode(CORPORA["text"], tree)
    for chunk_bytes in (1 << 20, 3):  # a character may lie across two pieces
        monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        with pytest.raises(DataError, match=f"^{path}: .*{message}"):
            take_snapshot(corpus, tmp_path / "cache", Silent())


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS = [{"id": i, "title": f"T{i}", "body": f"text {i}"} for i in range(30)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_a_field_without_text_names_those_with_text(kind, tmp_path, monkeypatch):
    if kind == "jsonl":
        write_rows(tmp_path / "rows.jsonl", ROWS)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet"
        )
    if kind == "hf":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    corpus = decode(CORPORA[kind], {"kind": kind, "path": str(tmp_path), "field": "id"})
    with pytest.raises(DataError, match=r"data\.corpus\.field = 'id'.*with text: title, body\."):
        take_snapshot(corpus, tmp_path / "cache", Silent())


def test_plain_text_read_as_json_lines_is_recognised(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("It was a dark night.\n12\n" * 20)
    corpus = decode(CORPORA["jsonl"], {"kind": "jsonl", "path": str(path)})
    with pytest.raises(DataError, match=r"kind = 'jsonl'.*set data\.corpus\.kind=text"):
        take_snapshot(corpus, tmp_path / "cache", Silent())


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    base = random_text(0, n_words=9000)
    corpus = jsonl(tmp_path, [f"{i} {base}" for i in range(300)])  # 300 x 42 kB
    tracemalloc.start()
    try:
        snapshot = take_snapshot(corpus, tmp_path / "cache", Silent())
        n_bytes = sum(len(text) for text in snapshot.texts(snapshot.hash_order()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes > 10_000_000
    # A few documents at a time and one-megabyte pieces for the checksum.
    assert peak < 4_000_000
