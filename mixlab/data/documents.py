"""What a corpus yields, and the account it keeps of what it had to leave out."""

from collections.abc import Iterable
from typing import Any, NamedTuple

N_NAMED = 10  # of everything that is counted, the first few are also named


class Document(NamedTuple):
    """One unit of text: it is hashed, split, measured and ended by EOS as a whole."""

    name: str
    text: str


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 document, 2 documents."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def amount(n_bytes: int) -> str:
    """An amount of text in decimal units, as the report has them: 512 bytes, 3.4 kB, 9.82 MB."""
    if n_bytes < 1000:
        return counted(n_bytes, "byte")
    return f"{n_bytes / 1e3:.1f} kB" if n_bytes < 999_950 else f"{n_bytes / 1e6:.2f} MB"


class SourceReport:
    """Counts what a corpus skipped, by reason, and records facts about the source.

    Only counts and the first few names are kept, so that a billion bad rows cost no memory.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.skipped: dict[str, dict[str, Any]] = {}
        # Only for the message if nothing at all is left; neither goes into the manifest.
        self.text_fields: list[str] = []  # of a corpus of rows: fields in which text was seen
        self.first_defect: tuple[str, str, str] | None = None  # path, what is where, way out

    def skip(self, reason: str, name: str) -> None:
        """Count one thing left out of the corpus."""
        entry = self.skipped.setdefault(reason, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < N_NAMED:
            entry["first"].append(name)

    def saw_fields(self, names: Iterable[str]) -> None:
        """Remember that these fields of the rows hold text."""
        for name in names:
            if name not in self.text_fields and len(self.text_fields) < N_NAMED:
                self.text_fields.append(name)

    def summary(self) -> str:
        """One line for a person: how many were skipped and why; empty if none were."""
        return "; ".join(
            f"{entry['count']} x {reason} (first: {entry['first'][0]})"
            for reason, entry in self.skipped.items()
        )
