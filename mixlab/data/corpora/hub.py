"""Data sets read by `datasets`, streaming: from the Hugging Face Hub, or from local files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mixlab.core.errors import DataError, MissingPackageError, Rule
from mixlab.data.corpora.rows import RowCorpus, text_of
from mixlab.data.documents import Document, SourceReport
from mixlab.data.files import find_files, fingerprint


class HubDataset(RowCorpus):
    """A data set of the Hub, or whatever else `datasets.load_dataset` reads.

    Naming a Hub data set asks for the network; a local folder or `data_files` never uses it. The
    documents are kept in a local snapshot, so a second run needs no network. Code that comes with
    a data set is never run.
    """

    kind: Literal["hf"] = "hf"
    path: str
    """A data set's name on the Hub, a local folder, or a file format such as `parquet` that goes
    with `data_files`."""
    name: str | None = None
    """The data set's configuration, where it has several."""
    split: str = "train"
    """The source's split to read; ours are made from it anew."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. Whatever it was, the snapshot keeps what was read first."""
    data_files: str | list[str] | None = None
    """Local files, for a `path` that is a file format."""
    max_documents: int | None = Field(default=100_000, ge=1)
    """Read at most this many documents, the first ones; None reads all, which may be terabytes."""

    def model_post_init(self, context: Any) -> None:
        if not self.path.strip():
            raise Rule("path", self.path, "the name of a data set, or a folder")

    def documents(self, report: SourceReport) -> Iterator[Document]:
        rows = self._open()
        if rows.column_names:
            self._check_field(rows.column_names, f"{self.path} (split {self.split})")
            features = rows.features or {}
            report.saw_fields(
                name
                for name, kind in features.items()
                if getattr(kind, "dtype", None) in ("string", "large_string")
            )
            rows = rows.select_columns([self.field])  # the others are not even fetched
        yield from self._limited(self._documents(rows, report), report)

    def fingerprint(self) -> dict[str, Any]:
        local = self._local_files()
        if local is None:
            return {"revision": self.revision}
        found = fingerprint(find_files(local, (), SourceReport()))
        return {"files": found["files"], "listing": found["listing"]}

    def _local_files(self) -> str | list[str] | None:
        if self.data_files is not None:
            return self.data_files
        return self.path if Path(os.path.expanduser(self.path)).is_dir() else None

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise MissingPackageError("datasets", "The corpus 'hf'", "data") from None
        path = os.path.expanduser(self.path) if self._local_files() else self.path
        try:
            return datasets.load_dataset(
                path,
                self.name,
                split=self.split,
                streaming=True,
                revision=self.revision,
                data_files=self.data_files,
            )
        except Exception as error:  # the library and its network stack raise dozens of kinds
            raise self._unreadable(error) from error

    def _documents(self, rows: Any, report: SourceReport) -> Iterator[Document]:
        source = iter(rows)
        number = 0
        while True:
            try:
                row = next(source)
            except StopIteration:
                return
            except Exception as error:
                raise self._unreadable(error) from error
            name = f"{self.path}#{number}"
            if number == 0:  # some builders do not know their columns before the first row
                self._check_field(row, f"{self.path} (split {self.split})")
            number += 1
            text = text_of(row.get(self.field), name, report)
            if text is not None:
                yield Document(name, text)

    def _unreadable(self, error: Exception) -> DataError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given = f"{self.path!r}" + (f" (configuration {self.name!r})" if self.name else "")
        return DataError(
            f"data.corpus.path = {given}: expected a data set with the split {self.split!r} that "
            f"`datasets` can read, but it failed with {type(error).__name__}: {reason}. Check the "
            "name, configuration and split; a Hub data set also needs the network."
        )
