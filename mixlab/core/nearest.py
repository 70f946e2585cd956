"""What somebody may have meant who mistyped a name."""

import difflib
from collections.abc import Iterable

ALIKE = 0.45
"""Names that share less than this cannot have been meant; 1 is the same name."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like the given one; None if nothing is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=ALIKE)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence for the end of a message, with the space before it; empty if none is like it."""
    found = nearest(name, names)
    return "" if found is None else f" Did you mean {found!r}?"
