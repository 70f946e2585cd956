"""Mazes that the lab makes itself: scattered walls as in Maze-Hard, or carved corridors.

Source: for scattered walls Lehnert et al., "Beyond A*" (arXiv 2402.14083), section 3: 30 to 50 % of
the cells are walls, and the shortest path must be long. Ours: start and goal are found by two
sweeps (the cell farthest from a random cell, then one far enough from that), which makes long
paths a hundred times likelier than a random pair does.

Cost: 10x10 about 0.2 ms; 30x30 carved 2.5 ms; 30x30 scattered with a path of 110, 13 ms.
"""

import random
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mixlab.core.errors import DataError, Rule
from mixlab.tasks.base import Example
from mixlab.tasks.draws import generator
from mixlab.tasks.maze.paths import Paths, shortest_path, stride, waves
from mixlab.tasks.maze.rules import FREE, GOAL, START, WALL, MazeRules

_WALLS = (0.3, 0.5)


class Maze(MazeRules):
    """Square mazes with one start, one goal and a shortest path of at least a given length."""

    kind: Literal["maze"] = "maze"
    generator_version: ClassVar[int] = 1

    size: int = Field(default=10, ge=4, le=64)
    """Cells per row."""
    style: Literal["scatter", "carved"] = "scatter"
    """`scatter`: walls at random places; often several paths are equally short. `carved`: corridors
    dug by a random walk, so that only one path exists; an easier distribution."""
    min_path: int = Field(default=12, ge=2)
    """Fewest steps from start to goal."""
    walls: tuple[float, float] = _WALLS
    """Lowest and highest fraction of walls, drawn evenly per maze; `scatter` only."""
    only_path: bool = False
    """Keep only mazes with one shortest path, so that the exact score is free of ties."""
    max_tries: int = Field(default=20_000, ge=1)
    """Wall patterns that one example may use up before the difficulty counts as impossible."""

    def model_post_init(self, context: Any) -> None:
        low, high = self.walls
        if not 0 <= low <= high < 1:
            raise Rule("walls", list(self.walls), "two rising fractions from 0 to below 1")
        if self.style == "carved" and self.walls != _WALLS:
            raise Rule("walls", list(self.walls), "no value with style 'carved', which has none")
        # A shortest path has no two cells beside each other out of turn, which leaves it two
        # thirds of the cells at most, the border counted generously.
        most = (2 * self.size * self.size + 4 * self.size) // 3
        if self.min_path > most:
            raise Rule("min_path", self.min_path, f"at most {most} steps for size {self.size}")

    @property
    def name(self) -> str:
        style = "" if self.style == "scatter" else "-carved"
        return f"maze-{self.size}x{self.size}-path-{self.min_path}{style}"

    def example(self, seed: int, index: int) -> Example:
        settings = f"{self.name} {self.walls} {self.only_path} {self.generator_version}"
        rng = generator(settings, seed, index)
        longest = 0
        for attempt in range(self.max_tries):
            free = self._carve(rng) if self.style == "carved" else self._scatter(rng)
            ends = self._far_ends(free, rng) if free else None
            if ends is None:
                continue
            found = shortest_path(*ends, free, self.size)
            assert found is not None
            longest = max(longest, len(found.path) - 1)
            if len(found.path) <= self.min_path or (self.only_path and not found.is_only):
                continue
            return self._example(free, found, attempt + 1)
        raise DataError(
            f"{self.name}: no such maze in {self.max_tries} tries (seed {seed}, example {index}); "
            f"the longest shortest path had {longest} steps. Lower min_path"
            + (", or set only_path to false." if self.only_path else ", or use style 'carved'.")
        )

    def augment(
        self, questions: np.ndarray, answers: np.ndarray, seed: int, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Turned mazes with the paths that `solve` chooses in them.

        Where several paths are shortest, a turned answer would depend on how the maze lay before,
        which nobody can see: of the 10x10 mazes, 49 % could be answered exactly at best.
        """
        questions, answers = super().augment(questions, answers, seed, indices)
        if self.only_path or self.style == "carved":
            return questions, answers
        return questions, np.stack([self.solve(question) for question in questions])

    def _scatter(self, rng: random.Random) -> int:
        """Free cells: the rest after each cell became a wall with one probability."""
        n = self.size
        wall_frac = round(rng.uniform(*self.walls) * 256)
        # Bit by bit of the fraction, from its lowest: a cell's wall flag becomes the outcome of
        # "random 8-bit number below wall_frac", for all cells at once.
        n_bits = n * stride(n)
        walls = 0
        for place in range(8):
            drawn = rng.getrandbits(n_bits)
            walls = walls | ~drawn if wall_frac >> place & 1 else walls & ~drawn
        return self._board & ~walls

    @property
    def _board(self) -> int:
        n = self.size
        return sum(((1 << n) - 1) << row * stride(n) for row in range(n))

    def _carve(self, rng: random.Random) -> int:
        """Free cells: rooms at even rows and columns, joined into a tree by a random walk."""
        n, step = self.size, stride(self.size)
        rooms = sum(1 << r * step + c for r in range(0, n, 2) for c in range(0, n, 2))
        at = rng.choice([r * step + c for r in range(0, n, 2) for c in range(0, n, 2)])
        free, trail = 1 << at, [at]
        while trail:
            at = trail[-1]
            ways = [
                way
                for way in (1, -1, step, -step)
                if at + 2 * way >= 0
                and rooms >> at + 2 * way & 1
                and not free >> at + 2 * way & 1
                and (abs(way) == step or at // step == (at + 2 * way) // step)
            ]
            if not ways:
                trail.pop()
                continue
            way = rng.choice(ways)
            free |= 1 << at + way | 1 << at + 2 * way
            trail.append(at + 2 * way)
        return free

    def _far_ends(self, free: int, rng: random.Random) -> tuple[int, int] | None:
        """Two free cells at least `min_path` steps apart, if the sweeps find them."""
        first = waves(_random_bit(free, rng), free, self.size)
        start = _random_bit(first[-1], rng)
        found = waves(start, free, self.size)
        if len(found) <= self.min_path:
            return None
        far = sum(found[self.min_path :])
        goal = _random_bit(far, rng)
        return (start, goal) if rng.random() < 0.5 else (goal, start)

    def _example(self, free: int, found: Paths, n_tries: int) -> Example:
        n = self.size
        bits = np.unpackbits(
            np.frombuffer(free.to_bytes(n * stride(n) // 8 + 1, "little"), np.uint8),
            bitorder="little",
        )[: n * stride(n)]
        question = np.where(bits.reshape(n, stride(n))[:, :n], FREE, WALL).astype(np.uint8).ravel()
        question[self._place(found.path[0])] = START
        question[self._place(found.path[-1])] = GOAL
        length = len(found.path) - 1
        measures = {"path_at_least": length - length % 10, "only_path": found.is_only}
        meta = {"difficulty": measures, "path": length, "n_tries": n_tries}
        return Example(question, self.mark(question, found.path), self.given(question), meta)


def _random_bit(cells: int, rng: random.Random) -> int:
    """One of the cells, each equally likely."""
    for _ in range(rng.randrange(cells.bit_count())):
        cells &= cells - 1
    return cells & -cells
