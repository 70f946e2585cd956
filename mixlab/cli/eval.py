"""`mixlab eval`: what a trained model scores, with standard errors and levels of guessing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixlab.core import units
from mixlab.core.errors import LabError

if TYPE_CHECKING:
    from mixlab.jobs.evaluation.run import PartResult

COLUMNS = ("task", "metric", "value", "standard error", "n", "chance")


def eval_(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Bits per byte of this file; may be repeated.")
    ] = None,
    choices: Annotated[
        list[Path] | None,
        typer.Option(help="Questions in the form of HellaSwag or ARC (.jsonl); may be repeated."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness: names or YAML files, with commas."),
    ] = None,
    recall: Annotated[bool, typer.Option("--recall", help="Associative recall.")] = False,
    needle: Annotated[bool, typer.Option("--needle", help="Needles in haystacks.")] = False,
    loss: Annotated[bool, typer.Option(help="Loss on the validation and test split.")] = True,
    checkpoint: Annotated[
        str, typer.Option(help="best, last, or the number of a step that was kept.")
    ] = "best",
    n_tokens: Annotated[int, typer.Option(help="Most tokens of each split.")] = 1_000_000,
    window: Annotated[
        int | None, typer.Option(help="Longest sequence for --text; default: as in training.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Take the first N questions of --choices and --tasks.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Pairs of --recall, with commas.", show_default="4,8,16,32"),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of --needle prompts, with commas.")
    ] = None,
    n: Annotated[
        int | None, typer.Option(help="Rows of --recall (100) and needles per place (20).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows, needles and examples.")] = 0,
    task_dir: Annotated[
        Path | None, typer.Option(help="A folder with more task files for --tasks.")
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question of --tasks.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let --tasks fetch data sets from the Hub.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what the run folder has already.")
    ] = False,
) -> None:
    """Measure a trained model; results go to RUN/evals and to the screen as a table.

    Each part is saved when it is done, so the same command goes on after Ctrl-C.

    \b
    Examples:
      mixlab eval runs/quickstart
      mixlab eval runs/quickstart --text book.txt --recall --needle
      mixlab eval runs/quickstart --choices hellaswag_val.jsonl --limit 1000 --no-loss
      mixlab eval runs/quickstart --tasks my_task.yaml,arc_easy --download
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import open_screen, print_table
    from mixlab.jobs.evaluation.choice import chosen_parts

    wanted = chosen_parts(
        loss=loss, text=text or [], choices=choices or [], tasks=_listed(tasks), recall=recall,
        needle=needle, n_tokens=n_tokens, window=window, limit=limit,
        pairs=_numbers("pairs", pairs), lengths=_numbers("lengths", lengths), n=n, seed=seed,
        task_dir=task_dir, fewshot=fewshot, download=download,
    )  # fmt: skip
    with open_screen() as screen:
        from mixlab.jobs.evaluation.run import evaluate_run

        results = evaluate_run(
            run, wanted, checkpoint=checkpoint, again=again, screen=screen,
            tell=lambda result: screen.note(_told(result)),
        )  # fmt: skip
    print_table(COLUMNS, [row for result in results for row in _rows(result)])
    for note in (note for result in results for note in result.notes):
        typer.echo(note, err=True)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _numbers(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in _listed(text)]
    except ValueError:
        numbers = []
    if not numbers:
        raise LabError(f"--{name} = {text!r}: expected whole numbers, with commas.")
    return numbers


def _told(result: "PartResult") -> str:
    if result.is_new:
        return f"Wrote {result.path}"
    return f"{result.path} holds this already; --again measures it anew."


def _rows(result: "PartResult") -> list[tuple[str, ...]]:
    rows = []
    for score in result.scores:
        is_share = score.metric not in ("loss_nats", "bits_per_byte") and 0 <= score.value <= 1
        shown = _share if is_share else _four
        rows.append(
            (
                score.task, score.metric.replace("_", " "), shown(score.value),
                "n/a" if score.standard_error is None else shown(score.standard_error),
                f"{units.count(score.n)} {score.cases}",
                "" if score.chance is None else shown(score.chance),
            )
        )  # fmt: skip
    return rows


def _share(value: float) -> str:
    """As a percentage, with the digits that a guess among a whole vocabulary needs."""
    return f"{100 * value:.2g} %" if 0 < value < 0.0005 else units.percent(value)


def _four(value: float) -> str:
    return f"{value:.4f}"
