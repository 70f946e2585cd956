"""`mixlab study`: ablations with seeds, tuned rates and matched budgets."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def new_group(says: str) -> typer.Typer:
    """A command that has commands of its own."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=says,
    )


app = new_group(
    "Compare arms of a recipe: matched, tuned, with seeds, and reported with intervals."
)

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="One of `mixlab list studies`, or a YAML file.")
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="All arms and seeds at a size for a CPU, to see it work.")
]
Folder = Annotated[Path | None, typer.Option(help="The study's folder; default: studies/NAME.")]
Executor = Annotated[
    str | None, typer.Option(help="local, slurm or ray; default: as the study says.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at once; default: one per GPU or core.")
]


@app.command("run")
def run(
    study: StudyName,
    smoke: Smoke = False,
    folder: Folder = None,
    executor: Executor = None,
    workers: Workers = None,
) -> None:
    """Run a study, or go on with it where it stands.

    \b
    Examples:
      mixlab study run hybrid-patterns --smoke
      mixlab study run my-study.yaml --workers 4
      mixlab study run my-study.yaml --executor slurm --workers 32

    Ctrl-C saves and stops; the same command goes on. Errors in the study are found before any
    compute is spent. The exit status is 1 if an arm failed.
    """
    place, results = drive(study, smoke, folder, executor, workers)
    _finish(place, results)
    if any(arm["status"] == "failed" for arm in results["arms"]):
        raise typer.Exit(1)


def drive(
    study: str, smoke: bool, folder: Path | None, executor: str | None, workers: int | None
) -> tuple[Path, dict[str, Any]]:
    """Run a study to its end, or until somebody stops it; its folder and results."""
    from mixlab.cli.screen import open_screen
    from mixlab.jobs.process import tune_process
    from mixlab.studies.study_file import load_study

    load_study(study)  # what is wrong with the file is told before PyTorch is loaded
    tune_process()
    with open_screen() as screen:
        from mixlab.stats import require_stats
        from mixlab.studies.driver import InterruptedStudyError
        from mixlab.studies.layout import study_folder
        from mixlab.studies.plan import expected_cost, refuse_expected
        from mixlab.studies.prepare_study import prepare_study

        require_stats("the report of a study")
        changes = {"executor": executor, "workers": workers}
        prepared = prepare_study(study, is_smoke=smoke, runner=changes, screen=screen)
        refuse_expected(prepared.found.study, expected_cost(prepared.found))
    place = study_folder(prepared.found.study.name, is_smoke=smoke, folder=folder)
    from mixlab.cli.study_screen import open_study_screen
    from mixlab.studies.study import drive_study

    try:
        with open_study_screen() as study_screen:
            outcome = drive_study(prepared.found, place, prepared.asked, study_screen)
    except InterruptedStudyError as stopped:
        print(f"Stopped; everything is saved in {place}.\nGo on with the same command.")
        raise typer.Exit(128 + (stopped.signal or signal.SIGINT)) from None
    return place, outcome.results


def _finish(folder: Path, results: dict[str, Any]) -> None:
    from mixlab.report.study import write_study_report
    from mixlab.studies.progress import status_text
    from mixlab.studies.results import read_design
    from mixlab.studies.watch import look_at

    page = write_study_report(folder)
    print(status_text(folder, results, look_at(folder, read_design(folder)), False))
    print(f"Report: {page}")


@app.command("plan")
def plan(
    study: StudyName,
    smoke: Smoke = False,
    workers: Workers = None,
) -> None:
    """Show arms, runs, expected time and cost before any compute is spent.

    \b
    Examples:
      mixlab study plan hybrid-patterns
      mixlab study plan my-study.yaml --smoke
    """
    from mixlab.cli.screen import open_screen
    from mixlab.jobs.process import tune_process
    from mixlab.studies.study_file import load_study

    load_study(study)  # what is wrong with the file is told before PyTorch is loaded
    tune_process()
    with open_screen() as screen:
        from mixlab.studies.plan import plan_text
        from mixlab.studies.prepare_study import default_workers, prepare_study

        prepared = prepare_study(study, is_smoke=smoke, runner={"workers": workers}, screen=screen)
        text = plan_text(prepared.found, screen, n_workers=default_workers(prepared.found))
    print(text)


@app.command("status")
def status(study: StudyName, smoke: Smoke = False, folder: Folder = None) -> None:
    """Show how far a study is.

    \b
    Examples:
      mixlab study status hybrid-patterns
      mixlab study status studies/hybrid-patterns-smoke
    """
    from mixlab.studies.layout import find_folder
    from mixlab.studies.watch import describe_status

    print(describe_status(folder or find_folder(study, is_smoke=smoke)))


@app.command("report")
def report(study: StudyName, smoke: Smoke = False, folder: Folder = None) -> None:
    """Write the report of a study as it stands: one HTML page, plots and JSON.

    \b
    Examples:
      mixlab study report hybrid-patterns
      mixlab study report studies/hybrid-patterns-smoke
    """
    from mixlab.report.study import write_study_report
    from mixlab.studies.layout import find_folder
    from mixlab.studies.watch import write_results

    place = folder or find_folder(study, is_smoke=smoke)
    write_results(place)
    print(f"Report: {write_study_report(place)}")


@app.command("promote")
def promote(
    study: StudyName,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm to write down.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe: NAME.yaml is written.")],
    smoke: Smoke = False,
    folder: Folder = None,
) -> None:
    """Write an arm, with the rate that was found for it, as a recipe.

    \b
    Examples:
      mixlab study promote hybrid-patterns attention-25 my-hybrid
    """
    from mixlab.studies.layout import find_folder
    from mixlab.studies.promote import promote as write

    path, remarks = write(folder or find_folder(study, is_smoke=smoke), arm, name)
    for remark in remarks:
        print(remark, file=sys.stderr)
    print(f"Wrote {path}. Train it with: mixlab train {path}")


@app.command("worker")
def worker(
    folder: Annotated[Path, typer.Argument(help="The folder of a study that has been started.")],
    slot: Annotated[int, typer.Option(min=0, help="Which device this worker stands for.")] = 0,
    parent: Annotated[
        int | None, typer.Option(help="End when this process is no longer the parent.")
    ] = None,
    hang_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life that end a lease.")
    ] = 1800.0,
) -> None:
    """Take runs from a study's folder until none is left; what every executor starts.

    \b
    Examples:
      mixlab study worker studies/hybrid-patterns            # lend a hand from another machine
      mixlab study worker studies/hybrid-patterns --slot 1   # a second one on this machine
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.studies.results import read_design
    from mixlab.studies.worker import worker_process

    if not (folder / "queue.json").exists():
        read_design(folder)
    status = worker_process(folder, slot=slot, parent=parent, hang_s=hang_after)
    if status:
        raise typer.Exit(status)
