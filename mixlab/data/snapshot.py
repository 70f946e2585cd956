"""A frozen local copy of a corpus: read once, exact duplicates dropped, addressed by content.

Everything after it works on the copy, so the source may change, be slow or go away. In memory are
only hashes and offsets; the text stays on disk.
"""

import hashlib
import itertools
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core.config import digest, to_tree
from mixlab.data.cache import build_once
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import N_NAMED, SourceReport
from mixlab.data.files import MAX_DOCUMENT_BYTES, MAX_DOCUMENT_MIB
from mixlab.data.progress import Progress

FORMAT = 1  # part of every address: raise it when what is stored, or how it is chosen, changes
HASH_BYTES = 16
# The key keeps our document order unrelated to any other use of the hash of the same bytes.
_HASH_KEY = b"mixlab document"


def document_hash(text: bytes) -> bytes:
    """The identity of a document: it decides duplicates, the split, and the order in shards."""
    return hashlib.blake2b(text, digest_size=HASH_BYTES, key=_HASH_KEY).digest()


class Snapshot:
    """Read access to a finished snapshot folder. Documents are numbered in order of reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "snapshot.json").read_text("utf-8"))
        self._bounds = np.fromfile(folder / "bounds.bin", dtype="<i8")
        self._name_bounds = np.fromfile(folder / "name_bounds.bin", dtype="<i8")
        self.hashes = np.fromfile(folder / "hashes.bin", dtype=np.uint8).reshape(-1, HASH_BYTES)
        with open(folder / "text.bin", "rb") as stream:
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def content_hash(self) -> str:
        """A hash of the set of contents, whatever the order and the names."""
        return self.facts["content_hash"]

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each document, (n_documents,) int64."""
        return np.diff(self._bounds)

    def text(self, i: int) -> str:
        return self._text[self._bounds[i] : self._bounds[i + 1]].decode("utf-8")

    def texts(self, documents: np.ndarray) -> Iterator[str]:
        return (self.text(i) for i in documents)

    def name(self, i: int) -> str:
        start, end = self._name_bounds[i], self._name_bounds[i + 1]
        with open(self.folder / "names.bin", "rb") as stream:
            stream.seek(int(start))
            return stream.read(int(end - start)).decode("utf-8")

    def names(self) -> list[str]:
        """The names of all documents."""
        whole = (self.folder / "names.bin").read_bytes()
        return [whole[a:b].decode() for a, b in itertools.pairwise(self._name_bounds.tolist())]

    def hash_order(self) -> np.ndarray:
        """The documents sorted by content hash, (n_documents,) int64."""
        halves = np.ascontiguousarray(self.hashes).view(">u8")
        return np.lexsort((halves[:, 1], halves[:, 0]))

    def hash_of(self, documents: np.ndarray) -> str:
        """A hash of the set of these documents' contents."""
        return _set_hash(self.hashes[documents])


def _set_hash(hashes: np.ndarray) -> str:
    rows = np.sort(np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}").ravel())
    # numpy strips trailing zero bytes of S-items when it hands them out, but not in the buffer.
    return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()


def take_snapshot(corpus: CorpusConfig, cache_dir: Path, progress: Progress) -> Snapshot:
    """The snapshot of the corpus as its source is now, from the cache if nothing changed.

    Raises:
        DataError: the source cannot be read, or holds no document.
    """
    fingerprint = corpus.fingerprint()
    address = digest({"format": FORMAT, "corpus": to_tree(corpus), "source": fingerprint})

    def build(folder: Path) -> None:
        with progress.task("Reading the corpus", fingerprint.get("bytes")) as advance:
            _write(corpus, folder, advance)

    folder = cache_dir / "snapshots" / address
    return Snapshot(build_once(folder, "the corpus snapshot", build, progress))


def _write(corpus: CorpusConfig, folder: Path, advance: Any) -> None:
    report = SourceReport()
    seen: set[bytes] = set()
    duplicates: dict[str, Any] = {"documents": 0, "bytes": 0, "first": []}
    n_read, n_bytes = 0, 0
    bounds, name_bounds = [0], [0]
    with (
        open(folder / "text.bin", "wb") as texts,
        open(folder / "names.bin", "wb") as names,
        open(folder / "hashes.bin", "wb") as hashes,
    ):
        for document in corpus.documents(report):
            name = document.name.encode("utf-8", "backslashreplace")
            try:
                text = document.text.encode("utf-8")
            except UnicodeEncodeError:
                report.skip("not valid Unicode (a lone surrogate)", name.decode())
                continue
            if not text or len(text) > MAX_DOCUMENT_BYTES:
                report.skip(
                    f"larger than {MAX_DOCUMENT_MIB} MiB" if text else "empty", name.decode()
                )
                continue
            n_read, n_bytes = n_read + 1, n_bytes + len(text)
            advance(len(text))
            key = document_hash(text)
            if key in seen:
                duplicates["documents"] += 1
                duplicates["bytes"] += len(text)
                if len(duplicates["first"]) < N_NAMED:
                    duplicates["first"].append(name.decode())
                continue
            seen.add(key)
            texts.write(text)
            names.write(name)
            hashes.write(key)
            bounds.append(bounds[-1] + len(text))
            name_bounds.append(name_bounds[-1] + len(name))
    if not seen:
        raise corpus.nothing_left(report)
    np.array(bounds, dtype="<i8").tofile(folder / "bounds.bin")
    np.array(name_bounds, dtype="<i8").tofile(folder / "name_bounds.bin")
    facts = {
        "source": report.facts,
        "read": {"documents": n_read, "bytes": n_bytes},
        "skipped": report.skipped,
        "duplicates_dropped": duplicates,
        "content_hash": _set_hash(
            np.frombuffer(b"".join(seen), dtype=np.uint8).reshape(-1, HASH_BYTES)
        ),
    }
    text = json.dumps(facts, indent=1, sort_keys=True)
    (folder / "snapshot.json").write_text(text, encoding="utf-8")
