"""Marks between the phases of an update, for whoever measures them; free while nobody does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["data", "forward", "backward", "optimizer", "end"]

_listeners: list[Callable[[Phase], None]] = []


def begin(phase: Phase) -> None:
    """Say that a phase begins here, which ends the one before it."""
    for listener in _listeners:
        listener(phase)


def are_heard() -> bool:
    """Whether somebody measures phases now."""
    return bool(_listeners)


@contextmanager
def heard_by(listener: Callable[[Phase], None]) -> Iterator[None]:
    """Within this context `listener` is called at every mark."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
