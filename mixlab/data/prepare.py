"""The one entry point: from a data config to token shards and the manifest that describes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core.config import digest, to_tree
from mixlab.data.cache import build_once
from mixlab.data.config import DataConfig
from mixlab.data.documents import amount, counted
from mixlab.data.overlap import apply_limit, measure_overlap
from mixlab.data.progress import Progress, Silent
from mixlab.data.shards import TokenShards, require_fit, require_windows, write_shards
from mixlab.data.snapshot import FORMAT, Snapshot, take_snapshot
from mixlab.data.split import SPLITS, Split, split_documents
from mixlab.data.tokenizers.base import Tokenizer, TokenizerConfig, load_tokenizer


class PreparedData:
    """Data that is ready to be trained on.

    Attributes:
        manifest: plain data for `data.json`; byte for byte the same for the same text and config.
        tokenizer: text to ids and back.
        seq_len: tokens per training sequence, from the config.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seq_len: int) -> None:
        self.manifest, self.seq_len = manifest, seq_len
        facts = manifest["tokenizer"]
        self.tokenizer = load_tokenizer(folder / "tokenizer.json", facts["eos"])
        if not self.tokenizer.is_byte_level:
            self.tokenizer.set_mean_bytes(_bytes_per_text_token(manifest["splits"]["train"]))
        self._shards = {name: self._open(folder, name) for name in SPLITS}

    def _open(self, folder: Path, name: str) -> TokenShards:
        facts = self.manifest["splits"][name]
        token_bytes = self.tokenizer.token_bytes
        if not self.tokenizer.is_byte_level:
            token_bytes = self.tokenizer.mean_token_bytes(_bytes_per_text_token(facts))
        return TokenShards(folder, name, facts, token_bytes)

    def split(self, name: str) -> TokenShards:
        """The shards of "train", "validation" or "test"."""
        return self._shards[name]

    def require_sequences(self, name: str, n: int) -> None:
        """Check that a split holds `n` sequences; for train, which is read in batches of
        `train.batch_size` = n, that all others have at least one too.

        Raises:
            DataError: with the figures.
        """
        if name == "train":
            require_fit(self._shards, self.seq_len, n)
        else:
            require_windows(self.split(name), self.seq_len, n)


def _bytes_per_text_token(facts: dict[str, Any]) -> float:
    """Mean bytes per id that stands for text: EOS after each document stands for none."""
    return facts["bytes"] / max(1, facts["tokens"] - facts["documents"])


def prepare(config: DataConfig, cache_dir: Path, progress: Progress | None = None) -> PreparedData:
    """Read, split, measure, tokenise; each stage is taken from the cache where nothing changed.

    Raises:
        DataError: the corpus is missing, empty or too small, its splits overlap too much, the
            tokenizer does not fit, or the cache is damaged or cannot be written.
        MissingPackageError: the corpus needs a package that is not installed.
    """
    progress = progress or Silent()
    snapshot = take_snapshot(config.corpus, cache_dir, progress)
    _tell_source(snapshot, progress)
    dealt = split_documents(
        config.split,
        snapshot.hash_order(),
        snapshot.sizes,
        snapshot.facts["duplicates_dropped"]["documents"],
        snapshot.facts["source"].get("document", "document"),
    )
    overlap = measure_overlap(snapshot, dealt, cache_dir, progress)
    split, overlap_facts = apply_limit(config.split, snapshot, dealt, overlap, progress)
    folder, facts = _tokenise(config.tokenizer, snapshot, split, cache_dir, progress)
    # A ready-made tokenizer has the size it has: nothing else was asked for.
    wanted = getattr(config.tokenizer, "vocab_size", facts["tokenizer"]["vocab_size"])
    _tell_vocabulary(facts["tokenizer"]["vocab_size"], wanted, progress)
    manifest = {
        "format": FORMAT,
        "corpus": to_tree(config.corpus),
        **snapshot.facts,
        "split": to_tree(config.split),
        "overlap": overlap_facts,
        "tokenizer": {
            "config": to_tree(config.tokenizer),
            "vocab_size_asked": wanted,
            **facts["tokenizer"],
        },
        "splits": facts["splits"],
    }
    data = PreparedData(folder, manifest, config.seq_len)
    data.require_sequences("train", 1)
    return data


def _tell_source(snapshot: Snapshot, progress: Progress) -> None:
    facts = snapshot.facts
    read, dropped = facts["read"], facts["duplicates_dropped"]
    progress.note(
        f"Corpus: {counted(read['documents'], 'document')}, {amount(read['bytes'])}; "
        f"{counted(dropped['documents'], 'exact duplicate')} dropped."
    )
    if facts["source"].get("reached_max_documents"):
        progress.note("The source has more: reading stopped at data.corpus.max_documents.")
    for reason, entry in facts["skipped"].items():
        names = ", ".join(entry["first"][:3])
        progress.note(f"Skipped: {entry['count']} x {reason} ({names}).")


def _tell_vocabulary(n_entries: int, wanted: int, progress: Progress) -> None:
    if n_entries < wanted:
        progress.note(
            f"The training text has merges for {n_entries} tokens only; {wanted} were asked for."
        )


def _tokenise(
    config: TokenizerConfig,
    snapshot: Snapshot,
    split: Split,
    cache_dir: Path,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """The folder with tokenizer and shards, and what its `tokens.json` says."""
    # Settings decide a tokenizer that is trained here; its content decides a ready-made one.
    identity = config.identity() or to_tree(config)
    documents = {name: snapshot.hash_of(getattr(split, name)) for name in SPLITS}
    address = digest({"format": FORMAT, "tokenizer": identity, "documents": documents})

    def build(folder: Path) -> None:
        tokenizer = _make_tokenizer(config, snapshot, split.train, progress)
        tokenizer.save(folder / "tokenizer.json")
        facts: dict[str, Any] = {
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "eos": tokenizer.eos,
                "eos_id": tokenizer.eos_id,
                "is_byte_level": tokenizer.is_byte_level,
                "hash": tokenizer.hash,
            },
            "splits": {},
        }
        n_bytes = int(snapshot.sizes[np.concatenate(split)].sum())
        with progress.task("Tokenising", n_bytes) as advance:
            for name in SPLITS:
                facts["splits"][name] = write_shards(
                    folder, name, snapshot, getattr(split, name), tokenizer, advance
                )
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / "tokens.json").write_text(text, encoding="utf-8")

    folder = build_once(cache_dir / "tokens" / address, "the token shards", build, progress)
    return folder, json.loads((folder / "tokens.json").read_text(encoding="utf-8"))


def _make_tokenizer(
    config: TokenizerConfig, snapshot: Snapshot, train: np.ndarray, progress: Progress
) -> Tokenizer:
    n_bytes = int(snapshot.sizes[train].sum())
    with progress.task("Making the tokenizer", n_bytes) as advance:

        def texts() -> Any:
            for i in train:
                yield snapshot.text(i)
                advance(int(snapshot.sizes[i]))

        return config.build(texts())
