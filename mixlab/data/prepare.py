"""The one entry point: from a data config to token shards and the manifest that describes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core.config import digest, to_tree
from mixlab.data.cache import build_once
from mixlab.data.chat.config import ChatConfig
from mixlab.data.chat.known_questions import leave_out_known_questions
from mixlab.data.chat.messages import from_text
from mixlab.data.chat.shards import ExampleShards, require_room, require_rows, write_examples
from mixlab.data.chat.templates import TEMPLATES, ChatFormat
from mixlab.data.config import DataConfig
from mixlab.data.documents import amount, counted
from mixlab.data.overlap import apply_limit, measure_overlap
from mixlab.data.progress import Progress, Silent
from mixlab.data.shards import TokenShards, require_fit, require_windows, write_shards
from mixlab.data.snapshot import FORMAT, Snapshot, take_snapshot
from mixlab.data.split import SPLITS, Split, split_as_named, split_documents
from mixlab.data.tokenizers.base import Tokenizer, load_tokenizer


class PreparedData:
    """Data that is ready to be trained on.

    Attributes:
        manifest: plain data for `data.json`; byte for byte the same for the same text and config.
        tokenizer: text to ids and back.
        seq_len: tokens per training sequence, from the config.
        chat: how conversations are written; None for plain text.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], seq_len: int, chat: ChatConfig | None = None
    ) -> None:
        self.manifest, self.seq_len, self.chat = manifest, seq_len, chat
        facts = manifest["tokenizer"]
        self.tokenizer = load_tokenizer(folder / "tokenizer.json", facts["eos"])
        if not self.tokenizer.is_byte_level:
            self.tokenizer.set_mean_bytes(_bytes_per_text_token(manifest["splits"]["train"]))
        self._shards = {name: self._open(folder, name) for name in SPLITS}

    def _open(self, folder: Path, name: str) -> TokenShards | ExampleShards:
        facts = self.manifest["splits"][name]
        token_bytes = self.tokenizer.token_bytes
        if not self.tokenizer.is_byte_level:
            token_bytes = self.tokenizer.mean_token_bytes(_bytes_per_text_token(facts))
        if self.chat is not None:
            return ExampleShards(folder, name, facts, token_bytes, self.chat)
        return TokenShards(folder, name, facts, token_bytes)

    def split(self, name: str) -> Any:
        """The shards of "train", "validation" or "test": of text, or of examples."""
        return self._shards[name]

    def chat_format(self) -> ChatFormat:
        """The template with the tokenizer, of a corpus of conversations."""
        assert self.chat is not None, "plain text has no template"
        template = TEMPLATES[self.chat.template]
        return ChatFormat(template, self.tokenizer, is_tuned=True, prefix_lm=self.chat.prefix_lm)

    def require_sequences(self, name: str, n: int) -> None:
        """Check that a split holds `n` sequences; for train, which is read in batches of
        `train.batch_size` = n, that all others have at least one too.

        Raises:
            DataError: with the figures.
        """
        if self.chat is not None:
            require_room(self._shards, self.seq_len, self.chat)
            require_rows(self._shards, self.seq_len, name, n)
        elif name == "train":
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
    dealt = _deal(config, snapshot)
    if config.chat is not None:
        split, overlap_facts = leave_out_known_questions(snapshot, dealt, progress)
    else:
        overlap = measure_overlap(snapshot, dealt, cache_dir, progress)
        split, overlap_facts = apply_limit(config.split, snapshot, dealt, overlap, progress)
    folder, facts = _tokenise(config, snapshot, split, cache_dir, progress)
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
    data = PreparedData(folder, manifest, config.seq_len, config.chat)
    data.require_sequences("train", 1)
    if config.chat is not None:
        _describe_examples(data, progress)
    return data


def _deal(config: DataConfig, snapshot: Snapshot) -> Split:
    """The splits: as the corpus says, or by content hash."""
    if config.corpus.deals_splits:
        return split_as_named(snapshot.hash_order(), snapshot.names())
    return split_documents(
        config.split,
        snapshot.hash_order(),
        snapshot.sizes,
        snapshot.facts["duplicates_dropped"]["documents"],
        snapshot.facts["source"].get("document", "document"),
    )


def _describe_examples(data: PreparedData, progress: Progress) -> None:
    """Add to the manifest how conversations were written and packed, and tell it."""
    assert data.chat is not None
    data.manifest["chat"] = {
        **to_tree(data.chat),
        "marks": list(TEMPLATES[data.chat.template].marks),
        "special_tokens": data.chat_format().special_tokens,
    }
    for name in SPLITS:
        shards = data.split(name)
        fit = shards.fit(data.seq_len)
        data.manifest["splits"][name] |= fit
        text = (
            f"{name}: {counted(shards.n_documents, 'example')}, {shards.facts['answer_tokens']} of "
            f"{shards.n_tokens} tokens in answers, packed into "
            f"{counted(fit['sequences'], 'sequence')} ({fit['filled_frac']:.0%} full)."
        )
        if fit["too_long"]:
            text += (
                f" {fit['too_long']} longer than data.seq_len = {data.seq_len} left out; the "
                f"longest has {fit['longest']} tokens."
            )
        progress.note(text[0].upper() + text[1:])


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
    config: DataConfig,
    snapshot: Snapshot,
    split: Split,
    cache_dir: Path,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """The folder with tokenizer and shards, and what its `tokens.json` says."""
    # Settings decide a tokenizer that is trained here; its content decides a ready-made one.
    identity = config.tokenizer.identity() or to_tree(config.tokenizer)
    documents = {name: snapshot.hash_of(getattr(split, name)) for name in SPLITS}
    what = {"format": FORMAT, "tokenizer": identity, "documents": documents}
    template = None if config.chat is None else TEMPLATES[config.chat.template]
    if template is not None:
        what["template"] = template.name
    address = digest(what)

    def build(folder: Path) -> None:
        marks = () if template is None else template.marks
        tokenizer = _make_tokenizer(config, snapshot, split.train, marks, progress)
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
                to_write = (folder, name, snapshot, getattr(split, name))
                if template is None:
                    facts["splits"][name] = write_shards(*to_write, tokenizer, advance)
                else:
                    chat = ChatFormat(template, tokenizer, is_tuned=True)
                    facts["splits"][name] = write_examples(*to_write, chat, advance)
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / "tokens.json").write_text(text, encoding="utf-8")

    folder = build_once(cache_dir / "tokens" / address, "the token shards", build, progress)
    return folder, json.loads((folder / "tokens.json").read_text(encoding="utf-8"))


def _make_tokenizer(
    config: DataConfig,
    snapshot: Snapshot,
    train: np.ndarray,
    marks: Sequence[str],
    progress: Progress,
) -> Tokenizer:
    n_bytes = int(snapshot.sizes[train].sum())
    with progress.task("Making the tokenizer", n_bytes) as advance:

        def texts() -> Any:
            for i in train:
                text = snapshot.text(i)
                if config.chat is not None:
                    text = "\n".join(f"{role}\n{content}" for role, content in from_text(text))
                yield text
                advance(int(snapshot.sizes[i]))

        return config.tokenizer.build(texts(), marks)
