"""Examples that somebody has written down: the part that all tasks of files share."""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from mixlab.core.errors import DataError
from mixlab.tasks.base import Example, Task
from mixlab.tasks.puzzle_csv import PuzzleFiles, Row


class WrittenTask(Task):
    """A task whose examples are rows of files; a family adds what a row means."""

    generator_version: ClassVar[int] = 1
    kind: str

    files: PuzzleFiles
    """The CSV files, with the columns source, question, answer, rating."""

    @property
    def name(self) -> str:
        path = self.files.train or self.files.test
        return f"{self.kind}-{path.parent.name or path.stem}" if path else self.kind

    def read_row(self, row: Row, where: str) -> Example:
        """The example of a row; `where` names its file and line.

        Raises:
            DataError: the row is wrong; it is never repaired.
        """
        raise NotImplementedError

    def candidates(self, split: str, seed: int) -> Iterator[Example]:
        where = self.files.path(split)
        for row in self.files.rows(split, seed):
            yield self.read_row(row, f"{where}, line {row.number}")

    def homes(self, split: str, split_keys: list[bytes]) -> list[str]:
        return self.files.homes(split, split_keys)

    def example(self, seed: int, index: int) -> Example:
        found = next(islice(self.candidates("train", seed), index, None), None)
        if found is None:
            raise DataError(f"example {index} of {self.name}: the training file has fewer rows.")
        return found
