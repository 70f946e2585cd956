"""How the data package tells what it is doing, without knowing who listens."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """A listener: the command line draws bars, a notebook may print, a test may record."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Start one piece of work of `total` units (None: unknown).

        Inside the context, `advance(n)` reports n more units done.
        """
        ...

    def note(self, message: str) -> None:
        """One line that a person should see, such as what was skipped."""
        ...


class Silent:
    """Nobody listens."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        return nullcontext(lambda n: None)

    def note(self, message: str) -> None:
        pass
