"""JSON lines: one object per line, plain or compressed with gzip."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any, Literal

from mixlab.core.errors import DataError
from mixlab.data.corpora.base import left_out
from mixlab.data.corpora.rows import RowCorpus, text_of
from mixlab.data.documents import N_NAMED, Document, SourceReport
from mixlab.data.files import SourceFile, find_files, fingerprint

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson")
NOT_JSON = "line that is not JSON"


class Jsonl(RowCorpus):
    """Rows of JSON lines files. A line that is not an object with text is counted and named.

    The first object of each file must have the field: a wrong `field` is an error at once.
    """

    kind: Literal["jsonl"] = "jsonl"
    path: str | list[str]
    """A file, a folder (its .jsonl, .ndjson and .jsonl.gz files), a glob, or a list of these."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        files = find_files(self.path, SUFFIXES, report)
        rows = (document for file in files for document in self._rows(file, report))
        yield from self._limited(rows, report)

    def fingerprint(self) -> dict[str, Any]:
        return fingerprint(find_files(self.path, SUFFIXES, SourceReport()))

    def nothing_left(self, report: SourceReport) -> DataError:
        if NOT_JSON in report.skipped and not report.text_fields:
            return DataError(
                "data.corpus.kind = 'jsonl': expected JSON objects, one on each line of "
                f"{self.path!r}, but no line is one with text.{left_out(report)} If the file is "
                "plain text, set data.corpus.kind=text."
            )
        return super().nothing_left(report)

    def _rows(self, file: SourceFile, report: SourceReport) -> Iterator[Document]:
        for n_before, (name, row) in enumerate(json_rows(file, report)):
            if n_before == 0:
                self._check_field(row, f"the rows of {file.name}")
            if n_before < N_NAMED:
                report.saw_fields(k for k, value in row.items() if isinstance(value, str))
            if self.field not in row:
                report.skip("row without the field", name)
                continue
            text = text_of(row[self.field], name, report)
            if text is not None:
                yield Document(name, text)


def json_rows(file: SourceFile, report: SourceReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the name of its line; others are counted.

    Raises:
        DataError: the file cannot be read to its end.
    """
    try:
        with _open(file.path) as lines:
            for number, line in enumerate(lines, start=1):
                name = f"{file.name}:{number}"
                row = _parse(line, name, report)
                if row is not None:
                    yield name, row
    except (OSError, EOFError, zlib.error) as error:
        # Half a file is not a corpus: what follows the damage would be missing silently.
        raise DataError(
            f"data.corpus.path: {file.path} cannot be read to its end ({error})."
        ) from None


def _open(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _parse(line: bytes, name: str, report: SourceReport) -> dict[str, Any] | None:
    """The line's object, or None: an empty line is nothing, any other defect is counted."""
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        report.skip("line that is not UTF-8", name)
        return None
    except (ValueError, RecursionError):
        report.skip(NOT_JSON, name)
        return None
    if not isinstance(row, dict):
        report.skip("line that is not a JSON object", name)
        return None
    return row
