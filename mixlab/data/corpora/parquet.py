"""Parquet files, read a few rows at a time."""

from collections.abc import Iterator
from typing import Any, Literal

from mixlab.core.errors import DataError, MissingPackageError
from mixlab.data.corpora.rows import RowCorpus, text_of
from mixlab.data.documents import Document, SourceReport
from mixlab.data.files import SourceFile, find_files, fingerprint

_SUFFIXES = (".parquet",)
_N_ROWS = 256


class Parquet(RowCorpus):
    """Rows of Parquet files that share a text column."""

    kind: Literal["parquet"] = "parquet"
    path: str | list[str]
    """A file, a folder (its .parquet files), a glob, or a list of these."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        files = find_files(self.path, _SUFFIXES, report)
        rows = (document for file in files for document in self._rows(file, report))
        yield from self._limited(rows, report)

    def fingerprint(self) -> dict[str, Any]:
        # The size on disk says little about the text's, which is compressed: no `bytes` here.
        found = fingerprint(find_files(self.path, _SUFFIXES, SourceReport()))
        return {"files": found["files"], "listing": found["listing"]}

    def _rows(self, file: SourceFile, report: SourceReport) -> Iterator[Document]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingPackageError("pyarrow", "The corpus 'parquet'", "data") from None
        try:
            with parquet.ParquetFile(file.path) as table:
                self._check_field(table.schema_arrow.names, file.name)
                report.saw_fields(
                    column.name
                    for column in table.schema_arrow
                    if str(column.type) in ("string", "large_string", "string_view")
                )
                number = 0
                for rows in table.iter_batches(_N_ROWS, columns=[self.field]):
                    for value in rows.column(0).to_pylist():
                        name = f"{file.name}#{number}"
                        number += 1
                        text = text_of(value, name, report)
                        if text is not None:
                            yield Document(name, text)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"data.corpus.path: {file.path} is not a readable Parquet file ({reason})."
            ) from None
