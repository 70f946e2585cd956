"""Sources of text, friendly and hostile."""

import gzip
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, DataError, MissingPackageError
from mixlab.data.corpora import CORPORA
from mixlab.data.corpora.text import cut
from mixlab.data.documents import N_NAMED, SourceReport, amount


def read(kind, **settings):
    """(documents as a dict by name, report)"""
    report = SourceReport()
    corpus = decode(CORPORA[kind], {"kind": kind, **settings})
    return {d.name: d.text for d in corpus.documents(report)}, report


def counts(report):
    return {reason: entry["count"] for reason, entry in report.skipped.items()}


# --- Python sources ---


def test_the_standard_library_without_tests_and_tables():
    documents, report = read("python-stdlib")
    assert {"argparse.py", "json/decoder.py", "unittest/case.py"} <= set(documents)
    assert sum(map(len, documents.values())) > 5e6
    for name in documents:
        folders = name.split("/")[:-1]
        assert not {"test", "tests", "site-packages", "encodings", "pydoc_data"} & set(folders)
        assert not name.startswith("_sysconfigdata")
    assert list(documents) == sorted(documents)
    assert documents["argparse.py"].startswith("# Author")
    assert report.facts["python"].endswith(".".join(map(str, sys.version_info[:3])))


def test_installed_packages():
    corpus = decode(CORPORA["python-packages"], {"kind": "python-packages"})
    stream = corpus.documents(SourceReport())
    names = [next(stream).name for _ in range(50)]
    assert names == sorted(names)
    assert all(name.endswith(".py") and "/tests/" not in name for name in names)
    fingerprint = corpus.fingerprint()
    assert fingerprint["bytes"] > 1e6
    assert fingerprint == corpus.fingerprint()


# --- plain text ---


def test_what_is_not_text_is_skipped_counted_and_named(folder):
    (folder / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "utf16.txt").write_bytes("plain words".encode("utf-16-le"))
    (folder / "utf16bom.txt").write_bytes("plain words".encode("utf-16"))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "only_bom.txt").write_bytes(b"\xef\xbb\xbf")
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfafter the mark\r\n")
    (folder / "cut_short.txt").write_bytes("caf\xe9".encode()[:-1])
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "again").symlink_to(folder)
    (folder / "alias.txt").symlink_to(folder / "doc00.txt")
    (folder / ".hidden").write_text("secret")
    (folder / ".git" / "deep").mkdir(parents=True)
    (folder / ".git" / "deep" / "config.txt").write_text("secret")
    os.mkfifo(folder / "pipe")
    for document in ("file", "passage"):
        documents, report = read("text", path=str(folder), document=document)
        found = counts(report)
        assert found["not UTF-8"] == 3
        assert report.skipped["not UTF-8"]["first"] == [
            "cut_short.txt",
            "latin1.txt",
            "utf16bom.txt",
        ]
        assert found["holds NUL bytes"] == 1
        assert found["empty"] == 2
        assert sorted(report.skipped["hidden"]["first"]) == [".git/", ".hidden"]
        assert found["not a regular file"] == 1
        assert sum(n for reason, n in found.items() if reason.startswith("unreadable")) == 2
        assert "after the mark\r\n" in documents.values()
        text = "".join(documents.values())
        assert "secret" not in text
        first = (folder / "doc00.txt").read_text()
        assert text.count(first) == 1  # neither the alias nor the link to the folder repeats it


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is unreadable for root")
def test_a_file_without_permission_is_counted(folder):
    (folder / "doc00.txt").chmod(0)
    _, report = read("text", path=str(folder), document="file")
    assert "unreadable" in report.summary()


def test_only_the_first_names_are_kept(folder):
    for i in range(30):
        (folder / f"bad{i}").write_bytes(b"\xff")
    _, report = read("text", path=str(folder))
    assert report.skipped["not UTF-8"]["count"] == 30
    assert len(report.skipped["not UTF-8"]["first"]) == N_NAMED


def test_files_folders_globs_and_lists(folder):
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "x.md").write_text("deep text")
    assert len(read("text", path=str(folder), document="file")[0]) == 41
    assert len(read("text", path=str(folder / "*.txt"), document="file")[0]) == 40
    assert list(read("text", path=str(folder / "**/*.md"), document="file")[0].values()) == [
        "deep text"
    ]
    both = [str(folder / "doc00.txt"), str(folder / "sub"), str(folder / "doc00.txt")]
    assert list(read("text", path=both, document="file")[0]) == ["doc00.txt", "sub/deep/x.md"]


@pytest.mark.parametrize("missing", ["nowhere.txt", "no/*/where", "~nobody/x"])
def test_a_path_that_leads_nowhere_is_named(missing):
    with pytest.raises(DataError, match=r"data\.corpus\.path = .*expected an existing"):
        read("text", path=missing)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"found none\.$"):
        read("text", path=str(tmp_path))
    (tmp_path / ".hidden").write_text("secret")
    with pytest.raises(DataError, match=r"found none\. Left out: 1 x hidden"):
        read("text", path=str(tmp_path))


def test_passage_size_needs_passages():
    with pytest.raises(ConfigError, match="passage_bytes"):
        decode(CORPORA["text"], {"path": "x", "document": "file", "passage_bytes": 512})


TEXTS = {
    "prose": "".join(f"Sentence {i} of a story.\n" + "\n" * (i % 3 == 0) for i in range(4000)),
    "crlf": "".join(f"Line {i}\r\n" + "\r\n" * (i % 5 == 0) for i in range(6000)),
    "one line": " ".join(f"word{i}" for i in range(9000)),
    "no white space": "".join(chr(0x4E00 + i % 5000) for i in range(20000)),
    "old mac": "".join(f"Line {i}\r" for i in range(6000)),
    "50 kB": "".join(f"{i}\n" for i in range(9000)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_one_file_gives_many_passages_that_are_exactly_the_file(text, tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(text.encode())
    documents, report = read("text", path=str(path))
    assert "".join(documents.values()) == text
    assert report.facts["document"] == "passage"
    assert len(documents) >= 100


def test_passages_end_at_the_best_boundary():
    prose = list(cut(iter([TEXTS["prose"].encode()]), 500))
    assert all(passage.endswith(b"\n\n") for passage in prose[:-1])
    windows = list(cut(iter([TEXTS["crlf"].encode()]), 500))
    assert all(passage.endswith(b"\r\n\r\n") for passage in windows[:-1])
    words = list(cut(iter([TEXTS["one line"].encode()]), 500))
    assert all(passage.endswith(b" ") for passage in words[:-1])


def test_the_last_two_passages_are_within_bounds_too():
    """27 bytes whose one boundary is near the end: too late for a passage of 16."""
    assert [len(p) for p in cut(iter([b"a" * 25 + b" b"]), 16)] == [13, 14]


@given(st.text(alphabet=st.sampled_from("ab \n\r\t\u20ac\U0001f600"), max_size=2000), st.data())
def test_cutting_loses_nothing_and_keeps_characters_whole(text, data):
    raw = text.encode()
    size = data.draw(st.integers(16, 200))
    step = data.draw(st.integers(1, 500))
    passages = list(cut((raw[i : i + step] for i in range(0, len(raw), step)), size))
    assert b"".join(passages) == raw
    assert all(p.decode() for p in passages)
    # A hard cut steps back at most three bytes, to the beginning of a character.
    assert all(size // 2 - 3 <= len(p) <= size + size // 2 for p in passages[:-1])
    assert passages == list(cut(iter([raw]), size))  # the size of the pieces read does not matter


def test_many_even_files_stay_whole_and_a_dominant_one_is_cut(tmp_path):
    for i in range(250):
        (tmp_path / f"{i}.txt").write_text(f"document {i}\n\n" * 20)
    assert read("text", path=str(tmp_path))[1].facts["document"] == "file"
    (tmp_path / "huge.txt").write_text("a line\n\n" * 20_000)
    assert read("text", path=str(tmp_path))[1].facts["document"] == "passage"


@pytest.mark.parametrize("value", [0, 63, 2**24 + 1, "some", 1.5])
def test_the_rule_of_a_passage_size_tells_that_numbers_are_allowed(value):
    message = r"^passage_bytes = .*: expected auto, or a number of bytes from 64 to 16777216"
    with pytest.raises(ConfigError, match=message):
        decode(CORPORA["text"], {"path": "x", "passage_bytes": value})
    assert decode(CORPORA["text"], {"path": "x", "passage_bytes": 64}).passage_bytes == 64


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(1, "1 byte"), (999, "999 bytes"), (3440, "3.4 kB"), (999_949, "999.9 kB"),
     (999_950, "1.00 MB"), (9_820_000, "9.82 MB")],
)  # fmt: skip
def test_amounts_of_text_are_never_rounded_to_nothing(n_bytes, text):
    assert amount(n_bytes) == text


# --- JSON lines ---


def test_jsonl_rows_and_their_defects(tmp_path):
    lines = [
        json.dumps({"text": "first", "id": 1}),
        "",
        "{not json",
        json.dumps(["a", "list"]),
        json.dumps({"id": 2}),
        json.dumps({"text": None}),
        json.dumps({"text": 7}),
        json.dumps({"text": ""}),
        "[" * 100_000,
        json.dumps({"text": "last\u00e9"}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe{}\n")
    documents, report = read("jsonl", path=str(path))
    assert documents == {"rows.jsonl:1": "first", "rows.jsonl:10": "last\u00e9"}
    assert counts(report) == {
        "line that is not JSON": 2,
        "line that is not a JSON object": 1,
        "row without the field": 1,
        "row with no text": 1,
        "row with a int in place of text": 1,
        "empty": 1,
        "line that is not UTF-8": 1,
    }
    assert report.skipped["line that is not JSON"]["first"] == ["rows.jsonl:3", "rows.jsonl:9"]


def test_a_wrong_field_names_the_fields_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "x", "id": 1}) + "\n")
    with pytest.raises(DataError, match=r"data\.corpus\.field = 'text'.*body, id"):
        read("jsonl", path=str(tmp_path))
    assert read("jsonl", path=str(tmp_path), field="body")[0] == {"a.jsonl:1": "x"}


def test_compressed_jsonl_and_a_truncated_one(tmp_path):
    packed = gzip.compress(b"".join(b'{"text": "row %d"}\n' % i for i in range(1000)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    documents, report = read("jsonl", path=str(tmp_path), max_documents=10)
    assert len(documents) == 10
    assert report.facts["reached_max_documents"]
    documents, report = read("jsonl", path=str(tmp_path), max_documents=1000)
    assert len(documents) == 1000
    assert not report.facts["reached_max_documents"]
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read to its end"):
        read("jsonl", path=str(tmp_path))


# --- Parquet and datasets ---


@pytest.fixture
def parquet_folder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = tmp_path / "parquet"
    root.mkdir()
    for part in range(2):
        rows = {"id": list(range(300)), "text": [f"part {part} row {i}" for i in range(300)]}
        rows["text"][5] = None
        parquet.write_table(pyarrow.table(rows), root / f"train-{part:05d}-of-00002.parquet")
    return root


def test_parquet_rows(parquet_folder):
    documents, report = read("parquet", path=str(parquet_folder))
    assert len(documents) == 598
    assert documents["train-00001-of-00002.parquet#299"] == "part 1 row 299"
    assert counts(report) == {"row with no text": 2}
    with pytest.raises(DataError, match=r"fields are id, text"):
        read("parquet", path=str(parquet_folder), field="body")
    documents, report = read("parquet", path=str(parquet_folder), field="id")
    assert not documents
    assert counts(report) == {"row with a int in place of text": 600}


def test_a_damaged_parquet_file_is_named(parquet_folder):
    path = next(parquet_folder.iterdir())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"{path.name} is not a readable Parquet file"):
        read("parquet", path=str(parquet_folder))


def test_a_missing_package_is_named(parquet_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"mixlab\[data\]"):
        read("parquet", path=str(parquet_folder))


def test_a_missing_datasets_package_is_named(parquet_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="'datasets'"):
        read("hf", path=str(parquet_folder))


class TestDatasets:
    """The `hf` corpus on local sources; nothing here may reach for the network."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")

    def test_a_local_folder(self, parquet_folder):
        documents, report = read("hf", path=str(parquet_folder))
        assert list(documents.values())[:6] == [f"part 0 row {i}" for i in (0, 1, 2, 3, 4, 6)]
        assert len(documents) == 598
        assert counts(report) == {"row with no text": 2}

    def test_a_builder_with_files_and_a_limit(self, parquet_folder):
        files = sorted(map(str, parquet_folder.iterdir()))
        documents, report = read("hf", path="parquet", data_files=files[1:], max_documents=7)
        assert documents["parquet#0"] == "part 1 row 0"
        assert len(documents) == 7
        assert report.facts["reached_max_documents"]

    def test_json_lines_through_the_builder(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"body": f"row {i}"}) + "\n" for i in range(5)))
        documents, _ = read("hf", path="json", data_files=str(path), field="body")
        assert list(documents.values()) == [f"row {i}" for i in range(5)]

    def test_wrong_field_and_wrong_split(self, parquet_folder):
        with pytest.raises(DataError, match=r"data\.corpus\.field = 'body'.*id, text"):
            read("hf", path=str(parquet_folder), field="body")
        with pytest.raises(DataError, match="expected a data set with the split 'holdout'"):
            read("hf", path=str(parquet_folder), split="holdout")

    def test_a_hub_name_without_network_is_a_readable_error(self):
        with pytest.raises(DataError, match=r"data\.corpus\.path = 'someone/some-data'"):
            read("hf", path="someone/some-data")

    def test_the_fingerprint_follows_local_files(self, parquet_folder):
        corpus = decode(CORPORA["hf"], {"kind": "hf", "path": str(parquet_folder)})
        before = corpus.fingerprint()
        assert before == corpus.fingerprint()
        next(parquet_folder.iterdir()).touch()
        assert before != corpus.fingerprint()
