"""A listener for jobs that run inside a test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Quiet:
    """A screen that keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda n: None

    def note(self, message: str) -> None:
        self.notes.append(message)

    def training(self, row: dict[str, Any], n_steps: int, eta_s: float | None) -> None:
        self.rows.append(row)

    def evaluation(self, row: dict[str, Any], context: dict[str, Any]) -> None:
        self.rows.append(row)
