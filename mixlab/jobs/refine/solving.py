"""Solve puzzles of the user with a trained run, and judge the answers by the task's rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixlab.core.errors import DataError, LabError
from mixlab.evals.refinement import sigmoid
from mixlab.infer.refinement import Refining, Solutions, solve, solve_by_rollouts
from mixlab.jobs.refine.puzzles import held_out_puzzles, stated_puzzles
from mixlab.jobs.refine.trained import TrainedSolver
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.tasks.base import Task

BATCH_SIZE = 256
"""Puzzles that are solved together."""


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
    text: str  # the answer as people write it
    film: list[np.ndarray]  # the answer after each segment; empty unless asked for
    film_confidence: list[float]

    @property
    def n_wrong(self) -> int:
        """Cells that differ from the expected answer."""
        return int((self.answer != self.expected).sum())


def solve_for_run(
    solver: TrainedSolver,
    run_path: Path,
    puzzles: object = None,
    *,
    test: int | None = None,
    max_steps: int | None = None,
    exit_threshold: float | None = None,
    all_steps: bool = False,
    num_rollouts: int = 1,
    seed: int = 0,
    with_film: bool = False,
    screen: Screen | None = None,
) -> list[Solved]:
    """Solve `puzzles` (see `stated_puzzles`), or the first `test` test puzzles of the run.

    Absent settings are the run's: as many segments as in training, and its own exit threshold;
    with `all_steps` nothing stops early. Of `num_rollouts` tries the halting head picks one.

    Raises:
        LabError: a setting out of range, or a puzzle that is none or has not just one answer.
    """
    for name, value in (("max_steps", max_steps), ("num_rollouts", num_rollouts)):
        if value is not None and (isinstance(value, bool) or not _is_whole(value, 1, 1000)):
            raise LabError(f"{name} = {value!r}: expected a whole number from 1 to 1000.")
    if not _is_whole(seed, 0, 2**31):
        raise LabError(f"seed = {seed!r}: expected a whole number of 0 or more.")
    if exit_threshold is not None:
        is_number = isinstance(exit_threshold, int | float) and not isinstance(exit_threshold, bool)
        if not is_number or math.isnan(exit_threshold):
            raise LabError(f"exit_threshold = {exit_threshold!r}: expected a number.")
        if all_steps:
            raise LabError(
                f"exit_threshold = {exit_threshold}: expected without all_steps, with which no "
                "puzzle stops early. Leave one of them out."
            )
    if puzzles is not None and test is not None:
        raise LabError(f"test = {test}: expected either puzzles or a number of test puzzles.")
    if num_rollouts > 1 and solver.model.q_head is None:
        raise LabError(
            f"num_rollouts = {num_rollouts}: expected 1, since run {run_path} has no halting head "
            "that could choose among tries."
        )
    if puzzles is not None:
        questions = stated_puzzles(solver.task, puzzles)
    else:
        shown = screen or PlainScreen(lambda _: None)
        questions = held_out_puzzles(run_path, 1 if test is None else test, shown)
    threshold = solver.exit_threshold if exit_threshold is None else exit_threshold
    return solve_puzzles(
        solver, questions, exit_threshold=None if all_steps else threshold, max_steps=max_steps,
        num_rollouts=num_rollouts, seed=seed, with_film=with_film,
    )  # fmt: skip


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int | np.integer) and least <= value <= most


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
                text=solver.task.render(question, answers[i]),
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
