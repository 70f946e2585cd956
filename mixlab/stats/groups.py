"""Tie groups: who cannot be told from whom.

Definition. Arms stand in the order of their means, best first. Every arm is the head of a group: it
and all worse arms that are not significantly different from it. A group that is part of an earlier
one is dropped. The groups left are lettered a, b, c, ...; an arm may carry several letters.

So a group answers "which arms could as well be the best of this group?". One group in all says that
no arm differs from the best. Two arms without a common letter differ significantly. Two arms with a
common letter need not be equal, only unproven; where spreads are unequal they may even differ from
each other and yet both not from the head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TieGroup:
    """Arms that cannot be told from their best."""

    letter: str
    head: str  # its best arm
    members: tuple[str, ...]  # best first, the head included


def tie_groups(
    ranked: Sequence[str], is_different: Callable[[str, str], bool]
) -> tuple[TieGroup, ...]:
    """The groups of arms that are given best first."""
    found: list[tuple[str, ...]] = []
    for i, head in enumerate(ranked):
        group = (head, *(arm for arm in ranked[i + 1 :] if not is_different(head, arm)))
        if not any(set(group) <= set(earlier) for earlier in found):
            found.append(group)
    return tuple(TieGroup(_letter(i), group[0], group) for i, group in enumerate(found))


def _letter(i: int) -> str:
    """a ... z, aa, ab, ..."""
    head, last = divmod(i, 26)
    return (_letter(head - 1) if head else "") + chr(ord("a") + last)
