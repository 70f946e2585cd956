"""`mixlab claim`: re-test one sentence, and answer it with figures."""

from pathlib import Path
from typing import Annotated

import typer

from mixlab.cli.study import Executor, Folder, Smoke, Workers, drive, new_group

NOT_SUPPORTED, UNDECIDED = 1, 3

app = new_group("Re-test a claim by a study: supported, not supported or undecided.")

ClaimName = Annotated[
    str, typer.Argument(metavar="CLAIM", help="A packaged claim (mixlab list claims), or a file.")
]


@app.command("run")
def run(
    claim: ClaimName,
    smoke: Smoke = False,
    folder: Folder = None,
    executor: Executor = None,
    workers: Workers = None,
) -> None:
    """Run the claim's study, or go on with it, and give the verdict.

    \b
    Examples:
      mixlab claim run hybrids-beat-both-pure-forms
      mixlab claim run my-claim.yaml --smoke

    The exit status is 0 for supported, 1 for not supported and 3 for undecided.
    """
    from mixlab.studies.claims.claim_file import load_claim

    source = load_claim(claim).study_source
    place, _ = drive(source, smoke, folder, executor, workers)
    _answer(claim, place)


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
