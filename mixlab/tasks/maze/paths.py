"""Shortest paths in a grid of cells, on sets of bits: one int holds a whole wave of cells.

Cell (r, c) is bit r * (n + 1) + c: each row ends with one place that no cell uses, so that a shift
by one cannot carry a wave around the edge. A wave grows by one step in four shifts.
"""

from typing import NamedTuple


class Paths(NamedTuple):
    """The shortest paths between two cells."""

    path: list[int]  # bits of the stored path, from start to goal; see `shortest_path`
    is_only: bool  # no other path is as short


def stride(n: int) -> int:
    return n + 1


def grow(cells: int, n: int) -> int:
    """The four neighbours of each of the cells, without regard to walls."""
    step = n + 1
    return cells << 1 | cells >> 1 | cells << step | cells >> step


def waves(start: int, free: int, n: int, goal: int = 0) -> list[int]:
    """Cells by their distance from `start`, until `goal` or everything reachable is reached."""
    found = [start]
    rest = free & ~start
    wave = start
    while not wave & goal:
        wave = grow(wave, n) & rest
        if not wave:
            break
        found.append(wave)
        rest ^= wave
    return found


def shortest_path(start: int, goal: int, free: int, n: int) -> Paths | None:
    """One shortest path and whether it is the only one; None if there is none.

    Among equally short paths it is the one whose cells, from the goal backwards, come first in
    reading order: a function of the maze alone.
    """
    found = waves(start, free, n, goal)
    if not found[-1] & goal:
        return None
    path, is_only, all_paths = [goal], True, goal
    for wave in reversed(found[:-1]):
        before = grow(path[-1], n) & wave
        path.append(before & -before)
        all_paths = grow(all_paths, n) & wave
        is_only = is_only and not all_paths & (all_paths - 1)
    return Paths(path[::-1], is_only)


def n_steps(start: int, goal: int, free: int, n: int) -> int | None:
    """Length of the shortest paths in steps; None if there is none."""
    found = waves(start, free, n, goal)
    return len(found) - 1 if found[-1] & goal else None
