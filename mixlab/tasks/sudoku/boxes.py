"""The geometry of a Sudoku: which cells share a row, a column or a box, as sets of bits.

Cell number r * size + c is bit r * size + c of an int, so that a set of cells is one number and
"all candidates for digit d" meets "the cells of box 4" in one machine operation or three.
"""

from dataclasses import dataclass
from functools import lru_cache

BOX_SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Side of the grid -> rows and columns of a box."""

MAX_BLANKS = {4: 12, 6: 28, 9: 64}
"""More blanks than this never leave one solution: 4, 8 and 17 givens are the known minima."""


@dataclass(frozen=True)
class Boxes:
    """One board size. Build it with `boxes(size)`."""

    size: int  # digits, and side of the grid
    box_rows: int
    box_cols: int
    units: tuple[int, ...]  # every row, column and box as a set of cells
    units_of: tuple[tuple[int, int, int], ...]  # per cell
    keep: tuple[int, ...]  # per cell: all cells that may hold its digit too, itself included
    full: int  # all cells

    @property
    def n_cells(self) -> int:
        return self.size * self.size

    @property
    def is_square(self) -> bool:
        """Whether the transposed grid is a grid of the same kind."""
        return self.box_rows == self.box_cols


@lru_cache
def boxes(size: int) -> Boxes:
    height, width = BOX_SHAPES[size]
    n_cells = size * size
    full = (1 << n_cells) - 1
    rows = [0] * size
    cols = [0] * size
    blocks = [0] * size
    places = []
    for cell in range(n_cells):
        row, col = divmod(cell, size)
        block = row // height * (size // width) + col // width
        for group, number in ((rows, row), (cols, col), (blocks, block)):
            group[number] |= 1 << cell
        places.append((row, col, block))
    units_of = tuple((rows[r], cols[c], blocks[b]) for r, c, b in places)
    keep = tuple(
        full & ~(row | col | block) | 1 << cell for cell, (row, col, block) in enumerate(units_of)
    )
    return Boxes(size, height, width, (*rows, *cols, *blocks), units_of, keep, full)
