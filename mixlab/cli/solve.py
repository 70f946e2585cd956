"""`mixlab solve`: let a trained run solve puzzles."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mixlab.jobs.refine.solving import Solved, Task

UNSOLVED = 1


def solve(
    run: Annotated[Path, typer.Argument(help="A run folder of kind refine.")],
    puzzle: Annotated[
        str | None, typer.Argument(help="A puzzle, or a file of puzzles; absent: a test puzzle.")
    ] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="Print the answer after every segment.")
    ] = False,
    test: Annotated[
        int | None, typer.Option(help="Solve so many test puzzles of the run instead.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Segments at most; default: as many as in training.")
    ] = None,
    exit_threshold: Annotated[
        float | None, typer.Option(help="Stop above this score; default: the run's own choice.")
    ] = None,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Never stop early.")] = False,
    num_rollouts: Annotated[
        int, typer.Option(help="Tries per puzzle, of which the halting head picks one.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise that tells the tries apart.")] = 0,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per puzzle.")
    ] = False,
) -> None:
    """Solve puzzles with a trained run, and check the answers by the rules of the task.

    Cells stand in reading order, with or without line breaks; a blank is written as the task does,
    in Sudoku "." or 0. A file holds one puzzle per line, or grids with an empty line between two.
    Exit status 1 when a puzzle was not solved.

    \b
    Examples:
      mixlab solve runs/sudoku-4x4
      mixlab solve runs/sudoku-4x4 "1... ..3. .4.. ...2" --steps
      mixlab solve runs/sudoku-9x9 puzzles.txt --json
      mixlab solve runs/sudoku-6x6 --test 100 --num-rollouts 4
    """  # fmt: skip
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen
    from mixlab.core.errors import LabError
    from mixlab.jobs.refine.solving import held_out_puzzles, read_puzzles, solve_puzzles
    from mixlab.jobs.refine.trained import open_refiner

    _require("--max-steps", max_steps)
    _require("--num-rollouts", num_rollouts)
    if puzzle is not None and test is not None:
        raise LabError("--test: expected either a puzzle or a number of test puzzles, not both.")
    solver = open_refiner(run, checkpoint)
    if num_rollouts > 1 and solver.model.q_head is None:
        raise LabError(
            f"--num-rollouts = {num_rollouts}: expected 1, since run {run} has no halting head "
            "that could choose among tries."
        )
    if puzzle is not None:
        questions = read_puzzles(solver.task, puzzle)
    else:
        with open_screen() as screen:
            questions = held_out_puzzles(run, test or 1, screen)
    threshold = solver.exit_threshold if exit_threshold is None else exit_threshold
    found = solve_puzzles(
        solver,
        questions,
        exit_threshold=None if all_steps else threshold,
        max_steps=max_steps,
        num_rollouts=num_rollouts,
        seed=seed,
        with_film=steps,
    )
    for number, one in enumerate(found, start=1):
        if as_json:
            typer.echo(json.dumps(_row(solver.task, one)))
        elif steps or len(found) <= 10:
            typer.echo(_text(solver.task, one, number if len(found) > 1 else None))
    if len(found) > 1:
        typer.echo(_total(found), err=as_json)
    if not all(one.is_valid for one in found):
        raise typer.Exit(UNSOLVED)


def _require(name: str, value: int | None) -> None:
    from mixlab.core.errors import LabError

    if value is not None and not 1 <= value <= 1000:
        raise LabError(f"{name} = {value}: expected a number from 1 to 1000.")


def _text(task: "Task", one: "Solved", number: int | None) -> str:
    """The puzzle beside its answer, the segments where asked for, and the verdict."""
    parts = [f"Puzzle {number}"] if number is not None else []
    pairs = zip(one.film, one.film_confidence, strict=True)
    for i, (answer, confidence) in enumerate(pairs, start=1):
        n_wrong = int(((answer != one.expected) & (one.expected != 0)).sum())
        state = f"{n_wrong} cells wrong" if n_wrong else "right"
        sure = "" if one.confidence is None else f", halting head {100 * confidence:.1f} % sure"
        parts += [f"after segment {i}: {state}{sure}", task.render(one.question, answer), ""]
    if not one.film:
        parts += [task.render(one.question, one.answer), ""]
    return "\n".join([*parts, _verdict(one), ""])


def _verdict(one: "Solved") -> str:
    segments = f"{one.steps} segment{'s' if one.steps > 1 else ''}"
    sure = "" if one.confidence is None else (
        f" The halting head is {100 * one.confidence:.1f} % sure."
    )  # fmt: skip
    if one.is_exact:
        return f"Solved in {segments}; the rules accept the answer.{sure}"
    if one.is_valid:
        return f"Solved in {segments}, otherwise than expected; the rules accept it.{sure}"
    cells = f"{one.n_wrong} cell{'s' if one.n_wrong > 1 else ''}"
    return f"Not solved: {cells} wrong after {segments}; the rules reject the answer.{sure}"


def _total(found: "list[Solved]") -> str:
    n, n_valid = len(found), sum(one.is_valid for one in found)
    mean = sum(one.steps for one in found) / n
    return f"{n_valid} of {n} puzzles solved ({100 * n_valid / n:.4g} %), {mean:.2f} segments each."


def _row(task: "Task", one: "Solved") -> dict[str, Any]:
    def chars(tokens: Any) -> str:
        return "".join(task.alphabet[token] for token in tokens.tolist())

    row: dict[str, Any] = {
        "question": chars(one.question), "answer": chars(one.answer), "valid": one.is_valid,
        "exact": one.is_exact, "steps": one.steps, "confidence": one.confidence,
    }  # fmt: skip
    if one.film:
        row["answers_by_step"] = [chars(answer) for answer in one.film]
    return row
