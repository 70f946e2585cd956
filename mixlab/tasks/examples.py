"""Training examples of a task as an endless stream that any position can be asked of."""

from typing import NamedTuple

import numpy as np

from mixlab.tasks.base import Task
from mixlab.tasks.sets import TaskSet


class Puzzles(NamedTuple):
    """n examples side by side."""

    inputs: np.ndarray  # (n, L) uint8
    labels: np.ndarray  # (n, L) uint8; PAD where nothing is asked
    given: np.ndarray  # (n, L) bool, the question states the label


class ExampleStream:
    """A set, shuffled anew in every epoch, each visit under a new symmetry of the task.

    Example i is a pure function of (seed, i), so that a run can go on from any position.
    """

    def __init__(self, task: Task, examples: TaskSet, seed: int, *, augment: bool = True) -> None:
        self._task, self._set, self._seed = task, examples, seed
        self._augments = augment
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._set)

    def batch(self, position: int, n: int) -> Puzzles:
        """The examples `position` to `position + n`."""
        slots = np.arange(position, position + n)
        rows = np.array([self._row(int(slot)) for slot in slots])
        inputs, labels = self._set.inputs[rows], self._set.labels[rows]
        if self._augments:
            inputs, labels = self._task.augment(inputs, labels, self._seed, slots)
        return Puzzles(inputs, labels, self._task.given(inputs))

    def _row(self, slot: int) -> int:
        epoch, place = divmod(slot, len(self._set))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._set))
            self._order = (epoch, order)
        return int(self._order[1][place])
