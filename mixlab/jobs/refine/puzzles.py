"""Puzzles to solve: as a user writes them, from a file, or those that a run has kept back."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from mixlab.core.cache import cache_dir
from mixlab.core.errors import DataError
from mixlab.jobs.config import RefineRunConfig, load_config
from mixlab.jobs.screen import Screen
from mixlab.tasks.base import Task
from mixlab.tasks.prepare import prepare_task

MAX_BYTES = 10_000_000
"""Largest puzzle file that is read."""
EXAMPLE_GRID = "grids of several lines with an empty line between two, or one puzzle per line"


def stated_puzzles(task: Task, puzzles: object) -> list[np.ndarray]:
    """The questions of one puzzle, of a file of puzzles, or of several puzzles as texts.

    Raises:
        DataError: none of these, or a puzzle that is not well formed; says which.
    """
    if isinstance(puzzles, PathLike):
        puzzles = str(Path(puzzles))
    if isinstance(puzzles, str):
        return read_puzzles(task, puzzles)
    if not isinstance(puzzles, Sequence) or not all(isinstance(p, str) for p in puzzles):
        raise DataError(
            f"puzzles = {puzzles!r}: expected a puzzle as text, a file of puzzles, or a list of "
            "puzzles."
        )
    if not puzzles:
        raise DataError("puzzles = []: expected at least one puzzle.")
    questions = []
    for i, puzzle in enumerate(puzzles):
        try:
            questions.append(task.parse_question(puzzle))
        except DataError as error:
            raise DataError(f"puzzle {i + 1} of {len(puzzles)}: {error}") from None
    return questions


def read_puzzles(task: Task, puzzle_or_file: str) -> list[np.ndarray]:
    """The questions that a text states, or those of the file that it names.

    Raises:
        DataError: not a puzzle and no such file, or a file with a wrong line; says which.
    """
    path = Path(puzzle_or_file)
    try:
        is_file = path.is_file()
    except OSError:  # too long for a file name: a puzzle
        is_file = False
    if not is_file:
        if (
            path.suffix
            and not any(char.isspace() for char in puzzle_or_file)
            and (len(puzzle_or_file) < task.length)
        ):
            raise DataError(
                f"puzzle = {puzzle_or_file!r}: there is no such file, and it is too short for a "
                f"{task.name} puzzle of {task.length} cells."
            )  # fmt: skip
        return [task.parse_question(puzzle_or_file)]
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES:,} bytes: expected a file of puzzles.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable text file: {error}.") from None
    puzzles = []
    for line, piece in _pieces(task, text):
        try:
            puzzles.append(task.parse_question(piece))
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    if not puzzles:
        raise DataError(f"{path} holds no puzzle: expected {EXAMPLE_GRID}.")
    return puzzles


def _pieces(task: Task, text: str) -> list[tuple[int, str]]:
    """The puzzles of a file with their first lines: blocks between empty lines, or single lines."""
    blocks: list[tuple[int, list[str]]] = []
    is_open = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("//"):
            is_open = False
        elif is_open:
            blocks[-1][1].append(line)
        else:
            blocks.append((number, [line]))
            is_open = True
    pieces = []
    for first, lines in blocks:
        whole = [len("".join(line.split())) >= task.length for line in lines]
        if task.shape[0] > 1 and all(whole):  # a puzzle per line
            pieces += [(first + i, line) for i, line in enumerate(lines)]
        else:
            pieces.append((first, "\n".join(lines)))
    return pieces


def held_out_puzzles(run_path: Path, n: int, screen: Screen) -> list[np.ndarray]:
    """The first n test puzzles of a run, which its training has not seen.

    Raises:
        DataError: the run has fewer.
    """
    config = load_config(str(run_path / "config.yaml"))
    assert isinstance(config, RefineRunConfig)
    if not 1 <= n <= config.data.n_test:
        raise DataError(
            f"test = {n}: expected 1 to {config.data.n_test}, the run's number of test puzzles."
        )
    return list(prepare_task(config.data, cache_dir(), screen.task).sets["test"].inputs[:n])
