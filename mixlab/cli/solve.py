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
    from mixlab.jobs.refine.solving import solve_for_run
    from mixlab.jobs.refine.trained import open_refiner

    solver = open_refiner(run, checkpoint)
    with open_screen() as screen:
        found = solve_for_run(
            solver, run, puzzle, test=test, max_steps=max_steps, exit_threshold=exit_threshold,
            all_steps=all_steps, num_rollouts=num_rollouts, seed=seed, with_film=steps,
            screen=screen,
        )  # fmt: skip
    _print(solver.task, found, as_json=as_json, every=steps or len(found) <= 10)
    if not all(one.is_valid for one in found):
        raise typer.Exit(UNSOLVED)


def _print(task: "Task", found: "list[Solved]", *, as_json: bool, every: bool) -> None:
    """Each puzzle, if there are not too many of them, and how many were solved."""
    for number, one in enumerate(found, start=1):
        if as_json:
            typer.echo(json.dumps(_row(task, one)))
        elif every:
            typer.echo(_text(task, one, number if len(found) > 1 else None))
    if len(found) > 1:
        typer.echo(_total(found), err=as_json)


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
        parts += [one.text, ""]
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
