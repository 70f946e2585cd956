"""Plain text files: each file one document, or cut into passages where files are few."""

import codecs
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from mixlab.core.errors import DataError, Rule
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import Document, SourceReport
from mixlab.data.files import (
    CHUNK_BYTES,
    MAX_DOCUMENT_BYTES,
    SourceFile,
    find_files,
    fingerprint,
    is_clean_text,
    read_text,
)

# `document: auto` keeps whole files only where a split by files can come close to its fractions.
_MIN_FILES = 50
_MAX_FILE_FRAC = 0.05
# `passage_bytes: auto` aims at this many passages, between these sizes.
_N_PASSAGES = 200
_PASSAGE_BYTES_MIN, _PASSAGE_BYTES_MAX = 256, 8192
_ASKED_MIN, _ASKED_MAX = 64, 1 << 24  # what may be asked for instead

# Where a passage may end, best first; the end of the match is the end of the passage.
_BOUNDARIES = (re.compile(rb"\n[ \t\r]*\n"), re.compile(rb"\n"), re.compile(rb"[ \t\r\f\v]+"))


class Text(CorpusConfig):
    """Plain UTF-8 text from files, folders and globs."""

    kind: Literal["text"] = "text"
    path: str | list[str]
    """A file, a folder (read with all its subfolders), a glob, or a list of these."""
    document: Literal["auto", "file", "passage"] = "auto"
    """The unit that is split and deduplicated: a whole file, or a passage of one. `auto` takes
    files where there are many and none dominates, and passages otherwise."""
    passage_bytes: Literal["auto"] | Annotated[int, Field(ge=_ASKED_MIN, le=_ASKED_MAX)] = "auto"
    """The length in bytes that a passage aims at; it ends at a blank line if one is near, else at
    a line's end, else at white space. `auto` gives about two hundred passages or more."""

    @field_validator("passage_bytes", mode="wrap")
    @classmethod
    def _auto_or_bytes(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise Rule(
                "", value, f"auto, or a number of bytes from {_ASKED_MIN} to {_ASKED_MAX}"
            ) from None

    def model_post_init(self, context: Any) -> None:
        if not self.path:
            raise Rule("path", self.path, "a file, a folder, a glob, or a list of these")
        if self.document == "file" and self.passage_bytes != "auto":
            raise Rule(
                "passage_bytes", self.passage_bytes, "no value, as data.corpus.document is 'file'"
            )

    def documents(self, report: SourceReport) -> Iterator[Document]:
        files = find_files(self.path, (), report)
        if self._document(files) == "file":
            report.facts["document"] = "file"
            for file in files:
                text = read_text(file, report)
                if text is not None:
                    yield Document(file.name, text)
            return
        files = [file for file in files if is_clean_text(file, report)]
        size = self._passage_bytes(sum(file.size for file in files))
        report.facts |= {"document": "passage", "passage_bytes": size, "files": len(files)}
        for file in files:
            yield from _passages(file, size)

    def fingerprint(self) -> dict[str, Any]:
        return fingerprint(find_files(self.path, (), SourceReport()))

    def _document(self, files: list[SourceFile]) -> str:
        if self.document != "auto":
            return self.document
        sizes = [file.size for file in files]
        is_even = max(sizes) <= min(MAX_DOCUMENT_BYTES, _MAX_FILE_FRAC * sum(sizes))
        return "file" if len(files) >= _MIN_FILES and is_even else "passage"

    def _passage_bytes(self, n_bytes: int) -> int:
        if self.passage_bytes != "auto":
            return self.passage_bytes
        aim = math.ceil(n_bytes / _N_PASSAGES)
        return min(max(aim, _PASSAGE_BYTES_MIN), _PASSAGE_BYTES_MAX)


def _passages(file: SourceFile, size: int) -> Iterator[Document]:
    """A checked file's passages, named by their place in bytes."""
    start = 0
    try:
        for passage in cut(_chunks(file), size):
            end = start + len(passage)
            yield Document(f"{file.name}[{start}:{end}]", passage.decode("utf-8"))
            start = end
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.corpus.path: {file.path} changed while it was read ({error})."
        ) from None


def _chunks(file: SourceFile) -> Iterator[bytes]:
    """A file's bytes without a byte order mark, in pieces."""
    with open(file.path, "rb") as stream:
        yield stream.read(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def cut(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Cut UTF-8 bytes into passages of about `size` bytes whose concatenation is the input.

    A passage is between half and one and a half times `size` long; only the last may be shorter.
    """
    buffer, start = b"", 0
    for chunk in chunks:
        buffer, start = buffer[start:] + chunk, 0
        while len(buffer) - start >= 2 * size:
            window = buffer[start : start + size + size // 2]
            end = start + _passage_end(window, size // 2, size)
            yield buffer[start:end]
            start = end
    rest = buffer[start:]
    # What is left is shorter than two passages: one, or two of about half of it.
    if len(rest) > size + size // 2:
        end = _passage_end(rest[: size + size // 2], size // 2, len(rest) // 2)
        yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def _passage_end(window: bytes, least: int, size: int) -> int:
    """Where a passage that begins with `window` ends: the best boundary, nearest to `size`, behind
    the first `least` bytes."""
    for boundary in _BOUNDARIES:
        ends = [match.end() for match in boundary.finditer(window, least)]
        # A run that touches the window's end may go on behind it.
        ends = [end for end in ends if end < len(window)]
        if ends:
            return min(ends, key=lambda end: abs(end - size))
    end = size
    while window[end] & 0xC0 == 0x80:  # inside a character of several bytes
        end -= 1
    return end
