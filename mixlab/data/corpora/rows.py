"""What corpora made of rows have in common: one named text field, and a limit."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

from mixlab.core.errors import DataError
from mixlab.data.corpora.base import CorpusConfig, left_out
from mixlab.data.documents import Document, SourceReport


class RowCorpus(CorpusConfig):
    """Base of the corpora in which a document is the text field of a row."""

    field: str = "text"
    """The name of the field that holds the text; the other fields are not read."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents, the first ones; None reads all."""

    def _limited(self, documents: Iterable[Document], report: SourceReport) -> Iterator[Document]:
        """The first `max_documents`; the report says whether that was the end of the source."""
        report.facts |= {"document": "row", "reached_max_documents": False}
        for n_before, document in enumerate(documents):
            if n_before == self.max_documents:
                report.facts["reached_max_documents"] = True
                return
            yield document

    def nothing_left(self, report: SourceReport) -> DataError:
        others = [name for name in report.text_fields if name != self.field]
        if others:
            return DataError(
                f"data.corpus.field = {self.field!r}: expected a field with text, but no row has "
                f"text there.{left_out(report)} Set data.corpus.field to one of the fields with "
                f"text: {', '.join(others)}."
            )
        return super().nothing_left(report)

    def _check_field(self, names: Iterable[str], where: str) -> None:
        """Raise unless the text field is among a source's fields."""
        names = list(names)
        if self.field not in names:
            listed = ", ".join(map(str, names)) or "none at all"
            raise DataError(
                f"data.corpus.field = {self.field!r}: expected a field of {where}, "
                f"whose fields are {listed}. Set data.corpus.field to the one with the text."
            )


def text_of(value: Any, name: str, report: SourceReport) -> str | None:
    """A row's text, or None with the reason counted."""
    if not isinstance(value, str):
        kind = "no text" if value is None else f"a {type(value).__name__} in place of text"
        report.skip(f"row with {kind}", name)
        return None
    if not value:
        report.skip("empty", name)
        return None
    return value
