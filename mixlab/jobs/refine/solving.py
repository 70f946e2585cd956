"""Solve puzzles of the user with a trained run, and judge the answers by the task's rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixlab.core.errors import DataError
from mixlab.evals.refinement import sigmoid
from mixlab.infer.refinement import Refining, Solutions, solve, solve_by_rollouts
from mixlab.jobs.cache import cache_dir
from mixlab.jobs.config import RefineRunConfig, load_config
from mixlab.jobs.refine.trained import TrainedSolver
from mixlab.jobs.screen import Screen
from mixlab.tasks.base import Task
from mixlab.tasks.prepare import prepare_task

MAX_BYTES = 10_000_000
"""Largest puzzle file that is read."""
BATCH_SIZE = 256
"""Puzzles that are solved together."""
EXAMPLE_GRID = "grids of several lines with an empty line between two, or one puzzle per line"


@dataclass(frozen=True)
class Solved:
    """One puzzle with its answer."""

    question: np.ndarray  # (L,) uint8
    answer: np.ndarray  # (L,) uint8
    expected: np.ndarray  # (L,) uint8, worked out from the rules
    steps: int  # segments that were run, of all tries together
    confidence: float | None  # chance that the answer is right, says the halting head
    is_exact: bool
    is_valid: bool
    film: list[np.ndarray]  # the answer after each segment; empty unless asked for
    film_confidence: list[float]

    @property
    def n_wrong(self) -> int:
        """Cells that differ from the expected answer."""
        return int((self.answer != self.expected).sum())


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
            f"--test = {n}: expected 1 to {config.data.n_test}, the run's number of test puzzles."
        )
    return list(prepare_task(config.data, cache_dir(), screen.task).sets["test"].inputs[:n])


def solve_puzzles(
    solver: TrainedSolver,
    questions: Sequence[np.ndarray],
    *,
    exit_threshold: float | None = None,
    max_steps: int | None = None,
    num_rollouts: int = 1,
    rollout_noise_std: float = 0.5,
    seed: int = 0,
    with_film: bool = False,
) -> list[Solved]:
    """Answers to the questions, each checked by the rules of the task.

    Raises:
        DataError: a question without an answer, or with more than one; says which.
    """
    task = solver.task
    expected = [_expected(task, q, i, len(questions)) for i, q in enumerate(questions)]
    solved: list[Solved] = []
    for start in range(0, len(questions), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        inputs = torch.from_numpy(np.stack(questions[part])).long()
        inputs = inputs.to(solver.model.embed_tokens.device)
        if num_rollouts > 1:
            found = solve_by_rollouts(
                solver.model, inputs, num_rollouts=num_rollouts, seed=seed + start,
                rollout_noise_std=rollout_noise_std, max_steps=max_steps,
                exit_threshold=exit_threshold,
            )  # fmt: skip
        else:
            found = solve(solver.model, inputs, max_steps=max_steps, exit_threshold=exit_threshold)
        solved += _judged(solver, questions[part], expected[part], found, with_film)
    return solved


def _judged(
    solver: TrainedSolver,
    questions: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    found: Solutions,
    with_film: bool,
) -> list[Solved]:
    stored = np.stack(expected)
    answers = np.where(stored == 0, 0, found.answers.cpu().numpy()).astype(np.uint8)
    verdicts = solver.task.check_many(np.stack(questions), answers, stored)
    has_head = solver.model.cfg.halting.n_logits > 0
    confidence = sigmoid(found.scores.cpu().double().numpy())
    solved = []
    for i, question in enumerate(questions):
        n_steps = min(int(found.steps[i]), solver.model.cfg.halting.halt_max_steps)
        film = _film(solver, question, n_steps) if with_film else ([], [])
        solved.append(
            Solved(
                question=question,
                answer=answers[i],
                expected=expected[i],
                steps=int(found.steps[i]),
                confidence=float(confidence[i]) if has_head else None,
                is_exact=bool(verdicts.exact[i]),
                is_valid=bool(verdicts.valid[i]),
                film=film[0],
                film_confidence=film[1],
            )
        )
    return solved


def _expected(task: Task, question: np.ndarray, index: int, n: int) -> np.ndarray:
    try:
        return task.solve(question)
    except DataError as error:
        where = f"puzzle {index + 1} of {n}: " if n > 1 else ""
        raise DataError(f"{where}{error} Correct the puzzle.") from None


@torch.no_grad()
def _film(
    solver: TrainedSolver, question: np.ndarray, n_steps: int
) -> tuple[list[np.ndarray], list[float]]:
    """The answer after each segment of the clean try, and what the halting head says of it."""
    model = solver.model
    inputs = torch.from_numpy(question[None]).long().to(model.embed_tokens.device)
    solving = Refining(model, inputs)
    answers, confidence = [], []
    for _ in range(min(n_steps, 1000)):
        step = solving.advance()
        answers.append(step.logits[0].argmax(dim=-1).cpu().numpy().astype(np.uint8))
        confidence.append(float(sigmoid(step.score.cpu().numpy())[0]))
    return answers, confidence
