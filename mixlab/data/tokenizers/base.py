"""The one form in which the lab uses a tokenizer, wherever it came from.

Three traps of `tokenizer.json` files are closed here. Their truncation, padding and added
begin/end tokens are switched off, so that ids stand for the text and nothing else. Special tokens
are not recognised in text, so that a document which contains `<|endoftext|>` cannot end itself.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from mixlab.core.config import Config
from mixlab.core.errors import DataError

EOS = "<|endoftext|>"
# Tried in this order where a ready-made tokenizer does not say which of its tokens ends a text.
KNOWN_EOS = (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|endofdocument|>", "[EOS]")


class Tokenizer:
    """Text to ids and back. Never emits EOS from text; `eos_id` is put between documents.

    Attributes:
        vocab_size: one more than the largest id, which is what a model's embedding must hold.
        eos_id: the id that ends a document.
        token_bytes: (vocab_size,) float32, the bytes of text that each id stands for; 0 for EOS
            and other special ids. Exact if `is_byte_level`, else the mean over the training split.
        is_byte_level: whether every id stands for a fixed number of bytes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        eos_id = backend.token_to_id(eos)
        if eos_id is None:
            raise DataError(
                f"data.tokenizer.eos = {eos!r}: expected a token of the tokenizer's vocabulary."
            )
        if not _is_special(backend, eos):
            backend.add_special_tokens([tokenizers.AddedToken(eos, special=True, normalized=False)])
        # Not part of the saved file: says that special tokens in text are ordinary text.
        backend.encode_special_tokens = True
        self.backend = backend
        self.eos, self.eos_id = eos, eos_id
        ids = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.is_byte_level = _is_byte_level(backend)
        self.token_bytes = np.zeros(self.vocab_size, dtype=np.float32)
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._is_text = np.zeros(self.vocab_size, dtype=bool)
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        for token, i in ids.items():
            self._is_text[i] = i not in special
            if self._is_text[i] and self.is_byte_level:
                # In a byte-level vocabulary one character of an entry is one byte of text.
                self.token_bytes[i] = len(token.encode()) if token in added else len(token)

    def set_mean_bytes(self, bytes_per_token: float) -> None:
        """Give every id that stands for text the mean; only where exact counts do not exist."""
        self.token_bytes = self.mean_token_bytes(bytes_per_token)

    def mean_token_bytes(self, bytes_per_token: float) -> np.ndarray:
        return np.where(self._is_text, bytes_per_token, 0).astype(np.float32)

    def encode(self, text: str) -> list[int]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without EOS; all cores are used.

        Raises:
            DataError: a text is not valid Unicode.
        """
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise DataError(
                "the text to encode holds half of a surrogate pair, so it is not valid Unicode."
            ) from None
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out, incomplete characters become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def special_id(self, token: str) -> int | None:
        """The id of a special token by its name; None if it is none, or not there at all."""
        return self.backend.token_to_id(token) if _is_special(self.backend, token) else None

    def with_special_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with those of `tokens` that it lacks, at ids after all others."""
        if all(self.special_id(token) is not None for token in tokens):
            return self
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens(
            [tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens]
        )
        return Tokenizer(backend, self.eos)

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        return self.backend.to_str(pretty=False)

    @property
    def hash(self) -> str:
        """A hash of everything that decides the ids."""
        text = json.dumps([json.loads(self.to_json()), self.eos], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class TokenizerConfig(Config):
    """Base of the tokenizers."""

    def identity(self) -> dict[str, str] | None:
        """What decides the ids, if that is known before any text is seen; else None."""
        raise NotImplementedError

    def build(self, texts: Iterator[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
        """Make the tokenizer; `texts` are the documents of the training split in hash order.

        `special_tokens` are to be in it; a ready-made one that lacks them gets them at the end.
        """
        raise NotImplementedError


def load_tokenizer(path: Path, eos: str) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        DataError: the file is missing or is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return Tokenizer(tokenizers.Tokenizer.from_str(text), eos)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer file {path} cannot be read: {error}.") from None
    except DataError:
        raise
    except Exception as error:  # the library raises the bare base class for a malformed file
        raise DataError(f"tokenizer file {path} is not a tokenizer.json: {error}.") from None


def _is_special(backend: tokenizers.Tokenizer, token: str) -> bool:
    added = backend.get_added_tokens_decoder().values()
    return any(entry.content == token and entry.special for entry in added)


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether decoding is byte-level and the text is not rewritten before encoding."""
    description = json.loads(backend.to_str())
    decoder = description.get("decoder") or {}
    splitter = description.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    rewrites = description.get("normalizer") is not None or any(
        part.get("add_prefix_space", False) for part in parts
    )
    return decoder.get("type") == "ByteLevel" and not rewrites
