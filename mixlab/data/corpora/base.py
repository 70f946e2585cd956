"""What every corpus is: a config that can yield documents and tell its source's state."""

from collections.abc import Iterator
from typing import Any, ClassVar

from mixlab.core.config import Config, to_tree
from mixlab.core.errors import DataError
from mixlab.data.documents import Document, SourceReport


class CorpusConfig(Config):
    """Base of the corpora. Both methods must be deterministic for an unchanged source."""

    has_examples: ClassVar[bool] = False
    """Whether a document is a conversation (`chat.messages.to_text`) rather than text."""
    deals_splits: ClassVar[bool] = False
    """Whether the name of a document begins with its split, such as test/12."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        """Stream the documents in a fixed order; what is left out is counted in `report`.

        `report.facts` takes what a reader of the manifest should know about the source. It must
        hold no path, time or host, so that equal data give equal manifests.
        """
        raise NotImplementedError

    def nothing_left(self, report: SourceReport) -> DataError:
        """The error for a corpus of which `report` tells that no document was left."""
        if report.first_defect is not None:
            path, what, way_out = report.first_defect
            n_files = sum(entry["count"] for entry in report.skipped.values())
            others = f" No document is left: {report.summary()}." if n_files > 1 else ""
            return DataError(f"{path}: expected UTF-8 text, but {what}.{others} {way_out}")
        return DataError(
            f"data.corpus.kind = {to_tree(self)['kind']!r}: expected at least one document, but "
            f"the corpus is empty.{left_out(report)} Point data.corpus at UTF-8 text."
        )

    def fingerprint(self) -> dict[str, Any]:
        """A cheap description by which a change of the source is noticed (sizes, times, versions).

        An entry `bytes`, where known, is the expected amount to read.
        """
        raise NotImplementedError


def left_out(report: SourceReport) -> str:
    """A sentence on what was skipped, with a blank in front; empty if nothing was."""
    return f" Left out: {report.summary()}." if report.skipped else ""
