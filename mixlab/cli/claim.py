"""`mixlab claim`: re-test one sentence, and answer it with figures."""

import signal
from pathlib import Path
from typing import Annotated

import typer

NOT_SUPPORTED, UNDECIDED = 1, 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-test a claim by a study: supported, not supported or undecided.",
)

ClaimName = Annotated[
    str, typer.Argument(metavar="CLAIM", help="A packaged claim (mixlab list claims), or a file.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="At a size for a CPU, to see it work.")]
Folder = Annotated[Path | None, typer.Option(help="The study's folder; default: studies/NAME.")]


@app.command("run")
def run(
    claim: ClaimName,
    smoke: Smoke = False,
    folder: Folder = None,
    executor: Annotated[
        str | None, typer.Option(help="local, slurm or ray; default: as the study says.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once.")] = None,
) -> None:
    """Run the claim's study, or go on with it, and give the verdict.

    \b
    Examples:
      mixlab claim run hybrids-beat-both-pure-forms
      mixlab claim run my-claim.yaml --smoke

    The exit status is 0 for supported, 1 for not supported and 3 for undecided.
    """
    from mixlab.studies.claims.claim_file import load_claim
    from mixlab.studies.driver import InterruptedStudyError
    from mixlab.studies.layout import study_folder

    loaded = load_claim(claim)
    place = study_folder(loaded.study.name, is_smoke=smoke, folder=folder)
    try:
        _run_study(loaded.study_source, smoke, place, executor, workers)
    except InterruptedStudyError as stopped:
        print(f"Stopped; everything is saved in {place}.\nGo on with the same command.")
        raise typer.Exit(128 + (stopped.signal or signal.SIGINT)) from None
    _answer(claim, place)


def _run_study(
    source: str, smoke: bool, place: Path, executor: str | None, workers: int | None
) -> None:
    from mixlab.cli.screen import open_screen
    from mixlab.jobs.process import tune_process
    from mixlab.stats import require_stats

    require_stats("the verdict on a claim")
    tune_process()
    with open_screen() as screen:
        from mixlab.studies.prepare_study import prepare_study

        changes = {"executor": executor, "workers": workers}
        prepared = prepare_study(source, is_smoke=smoke, runner=changes, screen=screen)
    from mixlab.cli.study_screen import open_study_screen
    from mixlab.studies.study import drive_study

    with open_study_screen() as study_screen:
        drive_study(prepared.found, place, prepared.asked, study_screen)


@app.command("judge")
def judge(claim: ClaimName, smoke: Smoke = False, folder: Folder = None) -> None:
    """Give the verdict on the study as it stands, without running anything.

    \b
    Examples:
      mixlab claim judge hybrids-beat-both-pure-forms
      mixlab claim judge my-claim.yaml --folder studies/mine

    The exit status is 0 for supported, 1 for not supported and 3 for undecided.
    """
    from mixlab.studies.claims.claim_file import load_claim
    from mixlab.studies.layout import find_folder

    loaded = load_claim(claim)
    _answer(claim, folder or find_folder(loaded.study.name, is_smoke=smoke))


def _answer(claim: str, place: Path) -> None:
    from mixlab.report.study import write_study_report
    from mixlab.report.study.folder import read_study
    from mixlab.stats import require_stats
    from mixlab.studies.claims.answer import answer_text, write_answer
    from mixlab.studies.claims.claim_file import load_claim
    from mixlab.studies.claims.verdict import judge as judge_claim
    from mixlab.studies.watch import write_results

    require_stats("the verdict on a claim")
    write_results(place)
    study = read_study(place)
    verdict = judge_claim(load_claim(claim).file, study)
    print(answer_text(verdict, study))
    print(f"Answer: {write_answer(verdict, study, place)}")
    print(f"Report: {write_study_report(place)}")
    status = {"supported": 0, "not supported": NOT_SUPPORTED}.get(verdict.verdict, UNDECIDED)
    if status:
        raise typer.Exit(status)
