"""How much of the held-out text also stands in the training text, by word 13-grams.

Exact duplicates are gone before the split. What can remain are near copies: a file that another
package carries in a slightly different version, a licence text, a generated sibling. A held-out
document that shares long runs of words with training text measures memory, not learning.

A word is a run of letters, digits and underscores, lower-cased; in scripts that are written without
spaces, and among pictographs, each character is one. Thirteen in a row is the length that GPT-3's
report used for the same purpose (Brown et al., arXiv:2005.14165, appendix C). A document of fewer
words counts as one run, equal to another that differs in case and white space at most.

Cost: one pass over the training text; memory is 8 bytes per held-out word and nothing per
training word.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixlab.core.config import digest
from mixlab.core.errors import DataError
from mixlab.data.cache import build_once
from mixlab.data.config import SplitConfig
from mixlab.data.progress import Progress
from mixlab.data.snapshot import FORMAT, Snapshot
from mixlab.data.split import Split

N_WORDS = 13
_N_OFFENDERS = 10
WORDS_FORMAT = 2
"""Of what counts as a word: figures of other rules are measured again."""
_WORD = re.compile(r"\w+")
_SINGLE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese, Japanese
    "\u2600-\u27bf\U0001f000-\U0001faff\U00020000-\U0003ffff"  # pictographs, rare ideographs
)
_WORD_OR_SIGN = re.compile(f"[{_SINGLE}]|[^\\W{_SINGLE}]+")
_HELD_OUT = ("validation", "test")
_FILTER_BITS = 24


class Overlap(NamedTuple):
    """Per held-out document, in the split's order: its 13-grams, and those found in train."""

    n_grams: dict[str, np.ndarray]  # split name -> (n_documents,) int64
    n_found: dict[str, np.ndarray]

    def fraction(self, name: str, kept: np.ndarray | slice = slice(None)) -> float:
        """Fraction of a split's 13-grams that occur in train."""
        n_grams = int(self.n_grams[name][kept].sum())
        return int(self.n_found[name][kept].sum()) / n_grams if n_grams else 0.0

    def per_document(self, name: str) -> np.ndarray:
        """The same fraction for each document, (n_documents,) float64."""
        return self.n_found[name] / np.maximum(1, self.n_grams[name])


def grams(text: str) -> np.ndarray:
    """A 64-bit hash of each run of 13 words of `text`, (n_words - 12,) uint64; at least one.

    Equal runs have equal hashes within one process; that two different runs collide is a matter
    of n_train * n_held_out / 2**64, about one in a million for a gigabyte of text.
    """
    words = (_WORD if text.isascii() else _WORD_OR_SIGN).findall(text.lower())
    if len(words) < N_WORDS:
        plain = " ".join(text.lower().split())
        return np.array([hash(plain)] if plain else [], dtype=np.int64).view(np.uint64)
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    n = len(words) - N_WORDS + 1
    rolled = np.zeros(n, dtype=np.uint64)
    for i in range(N_WORDS):  # Horner's scheme modulo 2**64; the multiplier is odd
        rolled = rolled * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + n]
    return rolled


class GramSet:
    """A set of hashes that marks which of its members were seen, in numpy."""

    def __init__(self, members: np.ndarray) -> None:
        self._members = np.unique(members)
        self._seen = np.zeros(len(self._members), dtype=bool)
        # Most training grams are in no held-out text: one table look-up rules them out.
        self._maybe = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._maybe[self._cell(self._members)] = True

    @staticmethod
    def _cell(hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)

    def mark(self, hashes: np.ndarray) -> None:
        candidates = hashes[self._maybe[self._cell(hashes)]]
        places, found = self._find(candidates)
        self._seen[places[found]] = True

    def n_seen(self, hashes: np.ndarray) -> int:
        """How many of `hashes` are members that were marked."""
        places, found = self._find(hashes)
        return int(self._seen[places[found]].sum())

    def _find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self._members):
            return np.zeros(len(hashes), dtype=np.int64), np.zeros(len(hashes), dtype=bool)
        places = np.searchsorted(self._members, hashes)
        places[places == len(self._members)] = 0
        return places, self._members[places] == hashes


def measure_overlap(
    snapshot: Snapshot, split: Split, cache_dir: Path, progress: Progress
) -> Overlap:
    """Overlap of validation and test with train, from the cache if this split was measured."""
    documents = {name: snapshot.hash_of(getattr(split, name)) for name in split._fields}
    address = digest({"format": [FORMAT, WORDS_FORMAT], "n_words": N_WORDS, "documents": documents})

    def build(folder: Path) -> None:
        overlap = _measure(snapshot, split, progress)
        table = {
            name: {"grams": overlap.n_grams[name].tolist(), "found": overlap.n_found[name].tolist()}
            for name in _HELD_OUT
        }
        (folder / "overlap.json").write_text(json.dumps(table), encoding="ascii")

    folder = build_once(cache_dir / "overlap" / address, "the overlap figures", build, progress)
    table = json.loads((folder / "overlap.json").read_text(encoding="ascii"))
    return Overlap(
        {name: np.array(table[name]["grams"], dtype=np.int64) for name in _HELD_OUT},
        {name: np.array(table[name]["found"], dtype=np.int64) for name in _HELD_OUT},
    )


def _measure(snapshot: Snapshot, split: Split, progress: Progress) -> Overlap:
    held_out = {name: getattr(split, name) for name in _HELD_OUT}
    # Kept as hashes, not as text: the held-out part is a fraction of the corpus.
    hashes = {name: [grams(t) for t in snapshot.texts(held_out[name])] for name in _HELD_OUT}
    members = GramSet(np.concatenate([h for name in _HELD_OUT for h in hashes[name]]))
    n_bytes = int(snapshot.sizes[split.train].sum())
    with progress.task("Measuring 13-gram overlap", n_bytes) as advance:
        for i in split.train:
            members.mark(grams(snapshot.text(i)))
            advance(int(snapshot.sizes[i]))
    return Overlap(
        {name: np.array([len(h) for h in hashes[name]], dtype=np.int64) for name in _HELD_OUT},
        {name: np.array([members.n_seen(h) for h in hashes[name]]) for name in _HELD_OUT},
    )


def apply_limit(
    config: SplitConfig, snapshot: Snapshot, split: Split, overlap: Overlap, progress: Progress
) -> tuple[Split, dict[str, Any]]:
    """The split to be used, and the overlap as the manifest records it.

    Raises:
        DataError: validation or test overlaps with train by more than the limit.
    """
    facts: dict[str, Any] = {"n_words": N_WORDS}
    kept_documents: dict[str, np.ndarray] = {}
    for name in _HELD_OUT:
        documents, fractions = getattr(split, name), overlap.per_document(name)
        keep = np.ones(len(documents), dtype=bool)
        if config.on_overlap == "drop":
            keep = fractions <= config.max_document_overlap
            if not keep.any():
                raise DataError(
                    f"data.split.max_document_overlap = {config.max_document_overlap}: expected "
                    f"some {name} document below it, but all {len(documents)} overlap more with "
                    "train. Raise it, or use a corpus with fewer near copies."
                )
        kept_documents[name] = documents[keep]
        worst = np.argsort(-fractions, kind="stable")[:_N_OFFENDERS]
        worst = worst[fractions[worst] > 0]
        facts[name] = {
            "measured": overlap.fraction(name),
            "used": overlap.fraction(name, keep),
            "documents_dropped": int((~keep).sum()),
            "bytes_dropped": int(snapshot.sizes[documents[~keep]].sum()),
            "worst": [[snapshot.name(documents[i]), round(float(fractions[i]), 4)] for i in worst],
        }
        progress.note(_sentence(name, facts[name]))
    for name in _HELD_OUT:
        if facts[name]["used"] > config.max_overlap:
            raise _too_much(name, facts[name], config)
    return Split(split.train, kept_documents["validation"], kept_documents["test"]), facts


def _sentence(name: str, facts: dict[str, Any]) -> str:
    text = f"Overlap of {name} with train: {facts['measured']:.1%} of its word {N_WORDS}-grams"
    for worst_name, worst_fraction in facts["worst"][:1]:
        text += f" (worst document: {worst_name}, {worst_fraction:.0%})"
    text += "."
    if facts["documents_dropped"]:
        text += (
            f" {facts['documents_dropped']} near copies left out; of the rest {facts['used']:.1%}."
        )
    return text


def _too_much(name: str, facts: dict[str, Any], config: SplitConfig) -> DataError:
    worst = ", ".join(f"{document} ({fraction:.0%})" for document, fraction in facts["worst"][:5])
    way_out = (
        "Set data.split.on_overlap=drop to leave near copies out of the held-out splits"
        if config.on_overlap == "stop"
        else "Lower data.split.max_document_overlap"
    )
    return DataError(
        f"data.split.max_overlap = {config.max_overlap}: expected at most this fraction of the "
        f"{name} split's word {N_WORDS}-grams in the training text, but it is "
        f"{facts['used']:.3f}. Worst: {worst}. {way_out}, or remove the copies from the corpus, or "
        "raise data.split.max_overlap if you accept them."
    )
