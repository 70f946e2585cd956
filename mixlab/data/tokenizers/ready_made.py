"""Tokenizers made elsewhere: a `tokenizer.json` on disk, or one on the Hugging Face Hub."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import tokenizers

from mixlab.core.errors import DataError, Rule
from mixlab.data.tokenizers.base import KNOWN_EOS, Tokenizer, TokenizerConfig, load_tokenizer

_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"  # where a tokenizer's folder names its EOS


class FromFile(TokenizerConfig):
    """A `tokenizer.json`, as the `tokenizers` library saves it."""

    kind: Literal["file"] = "file"
    path: str
    """The file, or a folder that holds it under its usual name."""
    eos: Literal["auto"] | str = "auto"
    """The token that ends a document. `auto` asks the folder's settings, then tries known names."""

    def identity(self) -> dict[str, str] | None:
        return {"hash": self._load().hash}

    def build(self, texts: Iterator[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
        return self._load().with_special_tokens(special_tokens)

    def _load(self) -> Tokenizer:
        path = Path(os.path.expanduser(self.path))
        path = path / _FILE if path.is_dir() else path
        if not path.is_file():
            raise DataError(
                f"data.tokenizer.path = {self.path!r}: expected a {_FILE} or a folder with one."
            )
        return _load(path, path.with_name(_SETTINGS), self.eos)


class FromHub(TokenizerConfig):
    """A tokenizer of a model on the Hub; once fetched, it is used from the local cache."""

    kind: Literal["hub"] = "hub"
    name: str
    """The model's name, such as HuggingFaceTB/SmolLM-135M."""
    revision: str = "main"
    """Branch, tag or commit."""
    eos: Literal["auto"] | str = "auto"
    """The token that ends a document. `auto` asks the model's settings, then tries known names."""

    def model_post_init(self, context: object) -> None:
        if not self.name.strip():
            raise Rule("name", self.name, "the name of a model on the Hub")

    def identity(self) -> dict[str, str] | None:
        return {"hash": self._load().hash}

    def build(self, texts: Iterator[str], special_tokens: Sequence[str] = ()) -> Tokenizer:
        return self._load().with_special_tokens(special_tokens)

    def _load(self) -> Tokenizer:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        def fetch(file: str) -> Path:
            return Path(hf_hub_download(self.name, file, revision=self.revision))

        try:
            path = fetch(_FILE)
            try:
                settings = fetch(_SETTINGS)
            except EntryNotFoundError:  # many models have none; the known names are tried then
                settings = path.with_name(_SETTINGS)
        except Exception as error:  # the client raises dozens of unrelated network errors
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise DataError(
                f"data.tokenizer.name = {self.name!r}: expected a model on the Hub with a {_FILE}, "
                f"but fetching it failed ({reason}). Check the name and the network, or download "
                f"the file elsewhere and set data.tokenizer.kind=file."
            ) from None
        return _load(path, settings, self.eos)


def _load(path: Path, settings: Path, eos: str) -> Tokenizer:
    if eos != "auto":
        return load_tokenizer(path, eos)
    return load_tokenizer(path, _named_eos(settings) or _known_eos(path))


def _named_eos(settings: Path) -> str | None:
    try:
        entry = json.loads(settings.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    # Older files keep the token's settings beside its text.
    return entry.get("content") if isinstance(entry, dict) else entry


def _known_eos(path: Path) -> str:
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises the bare base class for a malformed file
        raise DataError(f"tokenizer file {path} is not a tokenizer.json: {error}.") from None
    for name in KNOWN_EOS:
        if name in vocabulary:
            return name
    raise DataError(
        "data.tokenizer.eos = 'auto': expected the tokenizer to have an end-of-text token, such as "
        f"{', '.join(KNOWN_EOS)}, but it has none of these. Name one with data.tokenizer.eos=TOKEN."
    )
