"""Token files: one memory-mapped stream per split, each document followed by EOS."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.documents import counted
from mixlab.data.progress import Advance
from mixlab.data.snapshot import Snapshot
from mixlab.data.tokenizers.base import Tokenizer

# Texts handed to the tokenizer at once: enough to keep all cores busy, little enough for memory.
_GROUP_BYTES = 4 << 20

IGNORE = -100
"""A target that is not predicted; the default of torch's cross-entropy."""


class Sequences(NamedTuple):
    """What `data.batch.Batch` holds, before it becomes tensors."""

    tokens: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64, IGNORE where nothing is predicted
    segments: np.ndarray  # (B, T) int32
    prefix: np.ndarray | None = None  # (B, T) bool


def cut_windows(stream: np.ndarray, eos_id: int, windows: np.ndarray, seq_len: int) -> Sequences:
    """Windows of one stream of tokens: window w reads w*T to w*T+T and predicts one further."""
    spans = stream[(windows * seq_len)[:, None] + np.arange(seq_len + 1)].astype(np.int64)
    tokens, targets = spans[:, :-1], spans[:, 1:]
    # EOS occurs only at the end of a document, so counting it before a token numbers them.
    segments = np.zeros(tokens.shape, dtype=np.int32)
    np.cumsum(tokens[:, :-1] == eos_id, axis=1, out=segments[:, 1:])
    return Sequences(np.ascontiguousarray(tokens), np.ascontiguousarray(targets), segments)


class StoredTokens:
    """The tokens of one split, read through a memory map.

    Attributes:
        name: "train", "validation" or "test".
        tokens: (n_tokens,) uint16 or uint32; documents in hash order.
        starts: (n_documents + 1,) int64, where each document begins; the last is n_tokens.
        eos_id: the id that ends documents.
        token_bytes: (vocab_size,) float32, bytes that each id stands for in this split.
    """

    def __init__(self, folder: Path, name: str, facts: dict[str, Any], token_bytes: np.ndarray):
        self.name = name
        self.facts = facts
        self.eos_id: int = facts["eos_id"]
        self.token_bytes = token_bytes
        # A plain view: the subclass np.memmap makes every slice several times slower.
        self.tokens = np.asarray(
            np.memmap(folder / f"{name}.tokens.bin", dtype=facts["dtype"], mode="r")
        )
        self.starts = np.fromfile(folder / f"{name}.starts.bin", dtype="<i8")

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.starts) - 1


class TokenShards(StoredTokens):
    """Plain text: the end-of-text token after each document, and sequences cut from the stream."""

    def n_windows(self, seq_len: int) -> int:
        """Sequences that fit: they share no token, and one more token is the last one's target."""
        return max(0, (self.n_tokens - 1) // seq_len)

    def read(self, windows: np.ndarray, seq_len: int) -> Sequences:
        """The sequences numbered `windows`, (B, seq_len) each."""
        return cut_windows(self.tokens, self.eos_id, windows, seq_len)

    def evaluation_targets(self, seq_len: int, n_windows: int) -> np.ndarray:
        """The targets of the first `n_windows` sequences, one after the other."""
        return self.tokens[1 : n_windows * seq_len + 1]


def require_windows(shards: TokenShards, seq_len: int, n: int) -> None:
    """Check that a split has at least `n` sequences, such as one batch.

    Raises:
        DataError: with the figures.
    """
    n_windows = shards.n_windows(seq_len)
    if n_windows < n:
        raise DataError(
            f"data.corpus: the {shards.name} split has {shards.n_tokens} tokens, which is "
            f"{n_windows} sequences of data.seq_len = {seq_len}; {n} are needed "
            f"({n * seq_len + 1} tokens). Give more text, or lower data.seq_len."
        )


def require_fit(splits: Mapping[str, TokenShards], seq_len: int, batch_size: int) -> None:
    """Check that every split has a sequence, and train a whole batch of them.

    Args:
        batch_size: training sequences of one step; other splits are read in smaller batches if
            they must.

    Raises:
        DataError: with the figures of all splits, and the `seq_len` that would do for all.
    """
    needed = {name: batch_size if name == "train" else 1 for name in splits}
    n_windows = {name: shards.n_windows(seq_len) for name, shards in splits.items()}
    if all(n_windows[name] >= needed[name] for name in splits):
        return
    found = ", ".join(
        f"{name} {counted(shards.n_tokens, 'token')} ({counted(n_windows[name], 'sequence')})"
        for name, shards in splits.items()
    )
    for_batch = f" and {batch_size} in train (train.batch_size)" if batch_size > 1 else ""
    raise DataError(
        f"data.seq_len = {seq_len}: expected at least one sequence of {seq_len} tokens and a last "
        f"target in every split{for_batch}, but the text gives: {found}. "
        f"{_way_to_fit(splits, seq_len, batch_size, needed)}"
    )


def _way_to_fit(
    splits: Mapping[str, TokenShards], seq_len: int, batch_size: int, needed: Mapping[str, int]
) -> str:
    longest = min((shards.n_tokens - 1) // needed[name] for name, shards in splits.items())
    ways = [f"set data.seq_len={longest} or less"] if longest else []
    if batch_size > 1 and all(shards.n_windows(seq_len) for shards in splits.values()):
        ways.append(f"set train.batch_size={splits['train'].n_windows(seq_len)} or less")
    text = ", or ".join([*ways, "give more text"])
    text = f"{text[0].upper()}{text[1:]}."
    if batch_size > 1 or not longest:
        return text
    # The batch is not known yet, but the limit that it will meet can be told at once.
    return (
        f"{text} A training step also needs train.batch_size x data.seq_len below the "
        f"{splits['train'].n_tokens} tokens of train."
    )


def write_shards(
    folder: Path,
    name: str,
    snapshot: Snapshot,
    documents: np.ndarray,
    tokenizer: Tokenizer,
    advance: Advance,
) -> dict[str, Any]:
    """Tokenise `documents` into `folder`; returns the facts that `TokenShards` and readers need.

    Raises:
        DataError: the tokenizer made EOS out of text.
    """
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    starts = np.zeros(len(documents) + 1, dtype="<i8")
    n_done, n_tokens = 0, 0
    with open(folder / f"{name}.tokens.bin", "wb") as stream:
        for group, n_bytes in _groups(snapshot, documents):
            for ids in tokenizer.encode_many([snapshot.text(i) for i in group]):
                row = np.array([*ids, tokenizer.eos_id], dtype=dtype)
                if np.count_nonzero(row == tokenizer.eos_id) != 1:
                    raise DataError(
                        f"data.tokenizer: the text of {snapshot.name(documents[n_done])} gave the "
                        f"token {tokenizer.eos!r}, which must only end documents. Choose another "
                        "token with data.tokenizer.eos."
                    )
                stream.write(row.tobytes())
                n_tokens += len(row)
                n_done += 1
                starts[n_done] = n_tokens
            advance(n_bytes)
    starts.tofile(folder / f"{name}.starts.bin")
    n_bytes = int(snapshot.sizes[documents].sum())
    return {
        "documents": len(documents),
        "bytes": n_bytes,
        "tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
        "content_hash": snapshot.hash_of(documents),
        "dtype": dtype,
        "eos_id": tokenizer.eos_id,
    }


def _groups(snapshot: Snapshot, documents: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Consecutive documents in groups of about `_GROUP_BYTES`, with each group's bytes."""
    ends = np.cumsum(snapshot.sizes[documents])
    first, done = 0, 0
    while first < len(documents):
        last = int(np.searchsorted(ends, done + _GROUP_BYTES, side="left")) + 1
        n_bytes = int(ends[min(last, len(documents)) - 1]) - done
        yield documents[first:last], n_bytes
        first, done = last, done + n_bytes
