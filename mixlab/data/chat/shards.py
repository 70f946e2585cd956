"""Examples of question and answer on disk, and the packed sequences that training reads of them.

One stream of tokens per split, as of plain text, with a flag per token that tells answers. Rows are
made when a split is opened: whole examples, one after the other, each a document of its own, and
padding behind them. Nothing is predicted across examples, and nothing in the padding.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.chat.config import ChatConfig
from mixlab.data.chat.messages import from_text
from mixlab.data.chat.rows import pack
from mixlab.data.chat.templates import TEMPLATES, ChatFormat
from mixlab.data.documents import counted
from mixlab.data.progress import Advance
from mixlab.data.shards import IGNORE, Sequences, StoredTokens
from mixlab.data.snapshot import Snapshot

_GROUP = 4096  # examples that are encoded at once


class ExampleShards(StoredTokens):
    """The examples of one split, each a document.

    Attributes:
        is_answer: (n_tokens,) bool, what a model learns to write.
        eos_id: fills what is left of a row.
    """

    def __init__(
        self, folder: Path, name: str, facts: dict[str, Any], token_bytes: np.ndarray,
        chat: ChatConfig,
    ) -> None:  # fmt: skip
        super().__init__(folder, name, facts, token_bytes)
        self.chat = chat
        self._folder = folder
        self.is_answer = np.asarray(
            np.memmap(folder / f"{name}.answers.bin", dtype=np.bool_, mode="r")
        )
        self._packed: dict[int, _Packed] = {}

    def n_windows(self, seq_len: int) -> int:
        """Rows of `seq_len` tokens that hold all examples which fit."""
        return len(self._rows(seq_len).rows)

    def fit(self, seq_len: int) -> dict[str, Any]:
        """What the rows hold, and what was left out of them; for the manifest."""
        packed = self._rows(seq_len)
        used = sum(int(self._lengths[row].sum()) for row in packed.rows)
        room = len(packed.rows) * seq_len
        return {
            "sequences": len(packed.rows),
            "too_long": int(packed.n_too_long),
            "longest": int(self._lengths.max(initial=0)),
            "filled_frac": round(used / room, 4) if room else 0.0,
        }

    def read(self, windows: np.ndarray, seq_len: int) -> "Sequences":
        """The rows numbered `windows`, (B, seq_len) each."""
        shape = (len(windows), seq_len)
        tokens = np.full(shape, self.eos_id, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int32)
        prefix = np.zeros(shape, dtype=bool) if self.chat.prefix_lm else None
        rows = self._rows(seq_len).rows
        for i, window in enumerate(windows):
            at = 0
            for place, example in enumerate(rows[window]):
                start, stop = self.starts[example], self.starts[example + 1]
                end = at + int(stop - start)
                ids = self.tokens[start:stop].astype(np.int64)
                is_answer = self.is_answer[start:stop]
                tokens[i, at:end] = ids
                is_target = is_answer[1:] if self.chat.response_only_loss else np.True_
                targets[i, at : end - 1] = np.where(is_target, ids[1:], IGNORE)
                segments[i, at:end] = place
                if prefix is not None:
                    prefix[i, at : at + int(is_answer.argmax())] = True
                at = end
            segments[i, at:] = len(rows[window])  # the padding is of nobody
        return Sequences(tokens, targets, segments, prefix)

    def last_turn(self, example: int) -> "LastTurn":
        """What an example asks last, and the right answer."""
        start, stop = self.starts[example], self.starts[example + 1]
        ids, is_answer = self.tokens[start:stop].tolist(), self.is_answer[start:stop]
        end = int(np.flatnonzero(is_answer)[-1])  # of the mark that ends the answer
        if not TEMPLATES[self.chat.template].ends_answers:
            end += 1
        before = np.flatnonzero(~is_answer[:end])
        first = int(before[-1]) + 1 if len(before) else 0
        return LastTurn(ids[:first], ids[first:end])

    def asked(self) -> list[list[str]]:
        """Name, last question and last answer of each example; kept for held-out splits only."""
        return json.loads((self._folder / f"{self.name}.asked.json").read_text("utf-8"))

    def evaluation_targets(self, seq_len: int, n_windows: int) -> np.ndarray:
        """The targets of the first `n_windows` rows, one after the other."""
        targets = self.read(np.arange(n_windows), seq_len).targets
        return targets[targets != IGNORE]

    @property
    def _lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def _rows(self, seq_len: int) -> "_Packed":
        if seq_len not in self._packed:
            lengths = self._lengths
            fits = np.flatnonzero(lengths <= seq_len)
            rows = [fits[row].tolist() for row in map(np.array, pack(lengths[fits], seq_len))]
            self._packed[seq_len] = _Packed(rows, len(lengths) - len(fits))
        return self._packed[seq_len]


class LastTurn(NamedTuple):
    """The last answer of an example, and all that stands before it."""

    prompt: list[int]
    answer: list[int]  # without the mark that ends it


class _Packed(NamedTuple):
    rows: list[list[int]]  # example numbers
    n_too_long: int


def write_examples(
    folder: Path,
    name: str,
    snapshot: Snapshot,
    documents: np.ndarray,
    chat: ChatFormat,
    advance: Advance,
) -> dict[str, Any]:
    """Encode `documents` into `folder`; returns the facts that `ExampleShards` needs."""
    tokenizer = chat.tokenizer
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    starts = np.zeros(len(documents) + 1, dtype="<i8")
    n_answer, n_bytes = 0, 0
    with (
        open(folder / f"{name}.tokens.bin", "wb") as tokens,
        open(folder / f"{name}.answers.bin", "wb") as answers,
    ):
        for first in range(0, len(documents), _GROUP):
            group = documents[first : first + _GROUP]
            conversations = [from_text(snapshot.text(i)) for i in group]
            for k, example in enumerate(chat.encode_many(conversations), start=first + 1):
                tokens.write(example.ids.astype(dtype).tobytes())
                answers.write(example.is_answer.tobytes())
                starts[k] = starts[k - 1] + len(example.ids)
                n_answer += int(example.is_answer.sum())
            n_bytes += sum(len(m.content.encode()) for found in conversations for m in found)
            advance(int(snapshot.sizes[group].sum()))
    starts.tofile(folder / f"{name}.starts.bin")
    if name != "train":
        names = snapshot.names()
        rows = []
        for i in documents:
            *_, question, answer = from_text(snapshot.text(i))
            rows.append([names[i], question.content, answer.content])
        (folder / f"{name}.asked.json").write_text(json.dumps(rows), encoding="utf-8")
    n_tokens = int(starts[-1])
    return {
        "documents": len(documents),
        "bytes": n_bytes,
        "tokens": n_tokens,
        "answer_tokens": n_answer,
        "bytes_per_token": n_bytes / max(1, n_tokens),
        "content_hash": snapshot.hash_of(documents),
        "dtype": dtype,
        "eos_id": tokenizer.eos_id,
    }


def require_room(splits: dict[str, ExampleShards], seq_len: int, chat: ChatConfig) -> None:
    """Check that examples fit into a training sequence.

    Raises:
        DataError: none of a split does, or `too_long` is "stop" and one does not.
    """
    fits = {name: shards.fit(seq_len) for name, shards in splits.items()}
    longest = max(fit["longest"] for fit in fits.values())
    for name, fit in fits.items():
        n = splits[name].n_documents
        if fit["sequences"] == 0 or (fit["too_long"] and chat.too_long == "stop"):
            raise DataError(
                f"data.seq_len = {seq_len}: expected room for whole examples, but "
                f"{fit['too_long']} of {counted(n, 'example')} of {name} "
                f"{'is' if fit['too_long'] == 1 else 'are'} longer; the longest example has "
                f"{longest} tokens. Set data.seq_len={longest}, or leave longer ones out with "
                "data.chat.too_long=drop."
                if fit["sequences"]
                else f"data.seq_len = {seq_len}: expected room for whole examples, but none of the "
                f"{counted(n, 'example')} of {name} fits; the longest has {longest} tokens. Set "
                f"data.seq_len={longest}."
            )


def require_rows(splits: dict[str, ExampleShards], seq_len: int, name: str, n: int) -> None:
    """Check that a split has `n` training sequences, such as one batch.

    Raises:
        DataError: with the figures.
    """
    n_rows = splits[name].n_windows(seq_len)
    if n_rows < n:
        raise DataError(
            f"data.corpus: the {counted(splits[name].n_documents, 'example')} of {name} make "
            f"{counted(n_rows, 'sequence')} of data.seq_len = {seq_len}; {n} are needed for one "
            f"batch. Set train.batch_size={max(1, n_rows)} or less, lower data.seq_len, or give "
            "more examples."
        )
