"""Which examples share a training sequence, so that none is cut and little room is left over."""

import bisect

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Put examples of `lengths` (n,) into rows of `capacity` tokens: the example numbers per row.

    In the given order, each goes where it leaves the least room (best fit: at most 1.7 times the
    fewest rows possible, and far fewer where examples are short). Sorting them by length first
    would fill rows better, but with examples that are alike. The order of rows is then shuffled,
    always the same way, so that the first rows are no other than the rest. Every length must fit.
    """
    assert not len(lengths) or lengths.max() <= capacity, "what is too long was left out before"
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens left -> rows
    spaces: list[int] = []  # keys of with_room, sorted
    for example, length in enumerate(lengths.tolist()):
        place = bisect.bisect_left(spaces, length)
        if place == len(spaces):
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[place]
            row = with_room[space].pop()
            if not with_room[space]:
                del with_room[space], spaces[place]
        rows[row].append(example)
        left = space - length
        if left:
            if left not in with_room:
                bisect.insort(spaces, left)
            with_room.setdefault(left, []).append(row)
    order = np.random.Generator(np.random.Philox(key=len(rows))).permutation(len(rows))
    return [rows[i] for i in order]
