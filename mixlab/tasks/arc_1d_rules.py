"""Transformations of a row of coloured pixels, each with a maker of rows that show it.

A row is a tuple of ints, 0 for the background. A rule maps a row to a row, or to None where it has
nothing to say. No rule looks at which colour a pixel has, only at which pixels share one, so that
renaming the colours commutes with every rule.

Source: the idea of one-dimensional ARC tasks is Xu et al., "LLMs and the Abstraction and Reasoning
Corpus" (arXiv 2305.18354); rules and generator are our own.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

Row = tuple[int, ...]


class Block(NamedTuple):
    """A maximal run of one colour."""

    start: int
    end: int  # the first place behind it
    colour: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Rule1D(NamedTuple):
    """One transformation."""

    apply: Callable[[Row], Row | None]
    sample: Callable[[random.Random, int], Row]  # (rng, width) -> a row that the rule may change


def blocks(row: Row) -> list[Block]:
    """The blocks from left to right, background left out."""
    found = []
    start = 0
    for i in range(1, len(row) + 1):
        if i == len(row) or row[i] != row[start]:
            if row[start]:
                found.append(Block(start, i, row[start]))
            start = i
    return found


def paint(width: int, painted: list[Block]) -> Row:
    """A row with these blocks on the background; later ones cover earlier ones."""
    row = [0] * width
    for block in painted:
        row[block.start : block.end] = [block.colour] * block.size
    return tuple(row)


# --- rows ---------------------------------------------------------------------------------------


def sample_blocks(
    rng: random.Random, width: int, n: tuple[int, int], size: tuple[int, int], colours: int = 9
) -> Row:
    """Blocks with at least one background pixel between them, at random places."""
    while True:
        sizes = [rng.randint(*size) for _ in range(rng.randint(*n))]
        slack = width - sum(sizes) - (len(sizes) - 1)
        if slack < 0:
            continue
        cuts = sorted(rng.randint(0, slack) for _ in sizes)
        palette = rng.sample(range(1, 10), colours)
        painted, used = [], 0
        for cut, length in zip(cuts, sizes, strict=True):
            start = cut + used
            painted.append(Block(start, start + length, rng.choice(palette)))
            used += length + 1
        return paint(width, painted)


def _one_block(rng: random.Random, width: int) -> Row:
    return sample_blocks(rng, width, (1, 1), (2, max(2, width // 3)))


def _some_blocks(rng: random.Random, width: int) -> Row:
    return sample_blocks(rng, width, (2, 3), (1, max(2, width // 5)))


def _big_blocks(rng: random.Random, width: int) -> Row:
    return sample_blocks(rng, width, (1, 2), (3, max(3, width // 3)))


def _two_ends(rng: random.Random, width: int) -> Row:
    start = rng.randint(0, width - 4)
    end = rng.randint(start + 3, width - 1)
    row = [0] * width
    row[start] = row[end] = rng.randint(1, 9)
    return tuple(row)


def _noisy_block(rng: random.Random, width: int) -> Row:
    row = list(sample_blocks(rng, width, (1, 1), (3, max(3, width // 3))))
    for _ in range(rng.randint(1, 3)):
        free = [
            i
            for i in range(width)
            if not any(row[j] for j in range(max(0, i - 1), min(width, i + 2)))
        ]
        if free:
            row[rng.choice(free)] = rng.randint(1, 9)
    return tuple(row)


def _pixels(rng: random.Random, width: int) -> Row:
    return sample_blocks(rng, width, (2, max(2, width // 4)), (1, 1))


# --- transformations ----------------------------------------------------------------------------


def _move(steps: int) -> Callable[[Row], Row | None]:
    def apply(row: Row) -> Row | None:
        found = blocks(row)
        if len(found) != 1:
            return None
        block = found[0]
        if block.start + steps < 0 or block.end + steps > len(row):
            return None
        return paint(len(row), [Block(block.start + steps, block.end + steps, block.colour)])

    return apply


def _to_edge(right: bool) -> Callable[[Row], Row | None]:
    """All pixels slide to one edge and keep their order."""

    def apply(row: Row) -> Row:
        pixels = tuple(colour for colour in row if colour)
        gap = (0,) * (len(row) - len(pixels))
        return gap + pixels if right else pixels + gap

    return apply


def _mirror(row: Row) -> Row:
    return row[::-1]


def _fill(row: Row) -> Row | None:
    """The gap between two pixels of one colour is filled with it."""
    found = blocks(row)
    if len(found) != 2 or found[0].colour != found[1].colour:
        return None
    return paint(len(row), [Block(found[0].start, found[1].end, found[0].colour)])


def _hollow(row: Row) -> Row:
    """Of every block only the ends stay."""
    ends = [
        Block(at, at + 1, block.colour)
        for block in blocks(row)
        for at in (block.start, block.end - 1)
    ]
    return paint(len(row), ends)


def _denoise(row: Row) -> Row:
    """Blocks of one pixel vanish."""
    return paint(len(row), [block for block in blocks(row) if block.size > 1])


def _extend(row: Row) -> Row:
    """Every pixel runs to the right until the next one."""
    out, colour = [], 0
    for pixel in row:
        colour = pixel or colour
        out.append(colour)
    return tuple(out)


def _recolour_by(size_of: Callable[..., int]) -> Callable[[Row], Row | None]:
    """All blocks take the colour of the longest (max) or shortest (min) one."""

    def apply(row: Row) -> Row | None:
        found = blocks(row)
        if len(found) < 2:
            return None
        chosen = [b for b in found if b.size == size_of(c.size for c in found)]
        if len(chosen) != 1:
            return None
        return paint(len(row), [Block(b.start, b.end, chosen[0].colour) for b in found])

    return apply


def _keep_longest(row: Row) -> Row | None:
    found = blocks(row)
    longest = max((block.size for block in found), default=0)
    chosen = [block for block in found if block.size == longest]
    return paint(len(row), chosen) if len(found) > 1 and len(chosen) == 1 else None


def _swap_colours(row: Row) -> Row | None:
    """Two blocks exchange their colours."""
    found = blocks(row)
    if len(found) != 2 or found[0].colour == found[1].colour:
        return None
    a, b = found
    return paint(len(row), [Block(a.start, a.end, b.colour), Block(b.start, b.end, a.colour)])


def _cycle_colours(row: Row) -> Row | None:
    """Each block takes the colour of the block on its left, the first that of the last."""
    found = blocks(row)
    if len(found) < 3:
        return None
    return paint(
        len(row),
        [Block(b.start, b.end, found[i - 1].colour) for i, b in enumerate(found)],
    )


def _two_blocks(rng: random.Random, width: int) -> Row:
    return sample_blocks(rng, width, (2, 2), (1, max(2, width // 4)))


RULES: dict[str, Rule1D] = {
    "move-right-1": Rule1D(_move(1), _one_block),
    "move-right-2": Rule1D(_move(2), _one_block),
    "move-right-3": Rule1D(_move(3), _one_block),
    "move-left-1": Rule1D(_move(-1), _one_block),
    "move-left-2": Rule1D(_move(-2), _one_block),
    "slide-left": Rule1D(_to_edge(right=False), _some_blocks),
    "slide-right": Rule1D(_to_edge(right=True), _some_blocks),
    "mirror": Rule1D(_mirror, _some_blocks),
    "fill": Rule1D(_fill, _two_ends),
    "hollow": Rule1D(_hollow, _big_blocks),
    "denoise": Rule1D(_denoise, _noisy_block),
    "extend": Rule1D(_extend, _pixels),
    "recolour-by-longest": Rule1D(_recolour_by(max), _some_blocks),
    "recolour-by-shortest": Rule1D(_recolour_by(min), _some_blocks),
    "keep-longest": Rule1D(_keep_longest, _some_blocks),
    "swap-colours": Rule1D(_swap_colours, _two_blocks),
    "cycle-colours": Rule1D(_cycle_colours, _some_blocks),
}
"""Every rule that demonstrations are read by; the order is part of no result."""
