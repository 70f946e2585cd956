"""Rows of a puzzle file of the user's: CSV with the columns source, question, answer, rating.

That is how the public Sudoku-Extreme and Maze-Hard files are laid out. Nothing is downloaded here.
"""

import csv
import hashlib
import heapq
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from mixlab.core.config import Config
from mixlab.core.errors import DataError
from mixlab.tasks.splits import split_of


class Row(NamedTuple):
    """One puzzle as written in the file."""

    number: int  # the line it ends on, as editors count
    question: str
    answer: str  # empty where the file states none
    rating: str


def read_rows(path: Path) -> Iterator[Row]:
    """All rows in file order.

    Raises:
        DataError: the file cannot be read, or lacks the column `question`; names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            if "question" not in header:
                raise DataError(
                    f"{path}, line 1: expected a header with the column 'question' (and as a rule "
                    f"source, question, answer, rating), found {','.join(header)[:80]!r}."
                )
            columns = {name: i for i, name in enumerate(header)}
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: expected {len(header)} fields as in the "
                        f"header, found {len(fields)}."
                    )
                values = [
                    fields[columns[name]] if name in columns else ""
                    for name in ("question", "answer", "rating")
                ]
                yield Row(reader.line_num, *values)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}.") from None


class PuzzleFiles(Config):
    """Where the user keeps the files, and how many of their rows to use."""

    train: Path | None = None
    """Puzzles for training and, apart from them, for validation."""
    test: Path | None = None
    """Puzzles for testing."""
    max_rows: int = Field(default=100_000, ge=1)
    """Rows drawn from a file, by the seed. The others are not looked at."""

    def path(self, split: str) -> Path:
        """The file that holds `split`.

        Raises:
            DataError: none was given, or it does not exist.
        """
        part = "test" if split == "test" else "train"
        path = self.test if part == "test" else self.train
        if path is None:
            raise DataError(
                f"files.{part} = None: expected the CSV file with the puzzles of the split "
                f"{split!r}. The lab downloads no puzzles; give the path of a file that you have."
            )
        if not path.is_file():
            raise DataError(f"files.{part} = '{path}': expected a CSV file, which is not there.")
        return path

    def rows(self, split: str, seed: int) -> list[Row]:
        """Up to `max_rows` rows of the split's file, chosen and ordered by the seed."""
        path = self.path(split)
        state = path.stat()
        return _shuffled_rows(path, (state.st_size, state.st_mtime_ns), seed, self.max_rows)

    def homes(self, split: str, split_keys: list[bytes]) -> list[str]:
        """The split of each row: as the files say; of the training file a part is validation."""
        if split == "test":
            return ["test"] * len(split_keys)
        homes = [split_of(key) for key in split_keys]
        return ["validation" if home == "validation" else "train" for home in homes]


@lru_cache(maxsize=2)
def _shuffled_rows(path: Path, state: tuple[int, int], seed: int, n: int) -> list[Row]:
    """`state` is part of the cache's key, so that a changed file is read again."""

    def place(row: Row) -> bytes:
        return hashlib.blake2b(f"{seed}/{row.question}".encode(), digest_size=8).digest()

    return heapq.nsmallest(n, read_rows(path), key=place)
