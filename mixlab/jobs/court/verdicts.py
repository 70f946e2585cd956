"""What the kernel court decided, as plain data that lives in run folders and in the cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixlab.core.errors import RunError
from mixlab.core.json_files import to_plain

FORMAT = 1
Dims = Mapping[str, int | bool | str]
"""What tells two uses of an op apart besides rows, tokens and dtype, such as heads and widths."""


@dataclass(frozen=True)
class Candidate:
    """How one backend did."""

    name: str
    agrees: bool
    error: float | None = None  # largest relative error of an output or gradient
    ms: float | None = None  # forward and backward at the run's shape, median
    note: str = ""  # why it was not tried, or what went wrong


@dataclass(frozen=True)
class Verdict:
    """The backend of one use of an op."""

    op: str
    dims: dict[str, Any]
    dtype: str
    n_rows: int  # of one forward pass
    n_tokens: int  # of a row
    chosen: str | None  # None: nothing agreed, so `auto` keeps to its own rule
    candidates: tuple[Candidate, ...]

    def line(self) -> str:
        """For a person: "gated_delta_rule (n_heads 6, ...): flash_qla 0.92 ms, fla 2.31 ms"."""
        dims = ", ".join(f"{name} {value}" for name, value in self.dims.items())
        tried = sorted(self.candidates, key=lambda c: (c.name != self.chosen, c.ms or float("inf")))
        return f"{self.op} ({dims}): " + ", ".join(_result(c) for c in tried)


def _result(candidate: Candidate) -> str:
    if candidate.agrees and candidate.ms is not None:
        return f"{candidate.name} {candidate.ms:.2f} ms"
    return f"{candidate.name} {candidate.note or 'not tried'}"


class Verdicts(Sequence[Verdict]):
    """All verdicts of a run; empty where nothing had to be decided."""

    def __init__(self, verdicts: Sequence[Verdict] = ()) -> None:
        self._verdicts = tuple(verdicts)

    def __getitem__(self, index):
        return self._verdicts[index]

    def __len__(self) -> int:
        return len(self._verdicts)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self._verdicts)

    def choice(self, op: str, dims: Dims) -> tuple[str, ...]:
        """What to take first where `auto` is asked for: one name, or none."""
        for verdict in self._verdicts:
            if verdict.op == op and verdict.dims == dict(dims) and verdict.chosen is not None:
                return (verdict.chosen,)
        return ()

    def document(self) -> dict[str, Any]:
        """Plain data; see `read`."""
        return {"format": FORMAT, "verdicts": [to_plain(asdict(v)) for v in self._verdicts]}

    @classmethod
    def read(cls, document: Any, where: str) -> "Verdicts":
        """The verdicts of a document that was read from `where`.

        Raises:
            RunError: it is no such document.
        """
        try:
            if document["format"] != FORMAT:
                raise ValueError
            rows = [
                {**row, "candidates": tuple(Candidate(**c) for c in row["candidates"])}
                for row in document["verdicts"]
            ]
            return cls([Verdict(**row) for row in rows])
        except (KeyError, TypeError, ValueError):
            raise RunError(
                f"{where} is damaged: expected the verdicts of the kernel court in format "
                f"{FORMAT}. Restore it from a copy, or delete it to have the kernels tried again."
            ) from None
