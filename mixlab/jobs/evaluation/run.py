"""Measure a trained run: each part is written into the run folder as soon as it is done.

RUN/evals/step-000400/loss.json, text-book.json, recall.json, ...
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlab import __version__
from mixlab.core.config import read_yaml
from mixlab.core.errors import RunError
from mixlab.core.json_files import read_json, to_plain, write_json
from mixlab.core.run_dir import RunDir
from mixlab.core.units import percent
from mixlab.evals.scores import Score
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.evaluation.bench import Bench, Part
from mixlab.jobs.screen import PlainScreen, Screen
from mixlab.jobs.trained import open_trained
from mixlab.training import checkpoint as checkpoints

FORMAT = 1
FOLDER = "evals"


@dataclass(frozen=True)
class PartResult:
    """One part, measured now or found in the run folder."""

    path: Path
    scores: list[Score]
    notes: list[str]
    is_new: bool


def evaluate_run(
    path: Path | str,
    parts: Sequence[Part],
    *,
    checkpoint: str | int = "best",
    again: bool = False,
    screen: Screen | None = None,
    tell: Callable[[PartResult], None] = lambda result: None,
) -> list[PartResult]:
    """Measure `parts` on one checkpoint; `tell` hears of each as soon as its file is written.

    A part that was measured on the same weights with the same settings is read from its file,
    unless `again`. So an interrupted evaluation goes on where it was.

    Raises:
        LabError: no such run or checkpoint, a run that writes no text, or a part's own errors.
    """
    screen = screen or PlainScreen()
    run = RunDir.open(path)
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RunConfig):
        raise RunError(_own_metrics(run, config.kind))
    trained = open_trained(path, checkpoint)
    for note in trained.notes:
        screen.note(note)
    bench = Bench(run, config, trained, screen)
    folder = run.path / FOLDER / checkpoints.step_path(Path(), trained.step).name
    weights = _weights(run, trained.step)
    results = []
    for part in parts:
        identity = to_plain({**part.identity(), "weights": weights})
        file = _free_path(folder, part.name, identity)
        found = None if again else _earlier(file, identity)
        if found is None:
            start = time.perf_counter()
            measured = part.measure(bench)
            write_json(file, {
                "format": FORMAT,
                "mixlab": __version__,
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "step": trained.step,
                "settings": identity,
                "scores": [score.row() for score in measured.scores],
                "notes": measured.notes,
                "details": measured.details,
                "seconds": round(time.perf_counter() - start, 3),
            })  # fmt: skip
            found = PartResult(file, measured.scores, measured.notes, is_new=True)
        results.append(found)
        tell(found)
    return results


def read_scores(run: RunDir) -> list[dict[str, Any]]:
    """Every result in the run folder, by step and name."""
    files = sorted((run.path / FOLDER).glob("step-*/*.json"))
    return [document for file in files if (document := read_json(file)) is not None]


def _weights(run: RunDir, step: int) -> str:
    """A hash of the checkpoint: a run that was resumed at an earlier step has other weights."""
    index = read_json(checkpoints.step_path(run.checkpoints_path, step) / "checkpoint.json")
    return str(index["blake2b"])


def _free_path(folder: Path, name: str, identity: dict[str, Any]) -> Path:
    """`name`.json, or a numbered one where that holds a result of other files or settings."""
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        document = _document(path)
        if document is None or document["settings"] == identity:
            return path
        number += 1


def _earlier(path: Path, identity: dict[str, Any]) -> PartResult | None:
    document = _document(path)
    if document is None or document["settings"] != identity:
        return None
    scores = [Score(**row) for row in document["scores"]]
    return PartResult(path, scores, document["notes"], is_new=False)


def _document(path: Path) -> dict[str, Any] | None:
    """A result of this format; one that is damaged or of another format is made anew."""
    try:
        document = read_json(path)
    except RunError:
        return None
    is_ours = isinstance(document, dict) and document.get("format") == FORMAT
    return document if is_ours and isinstance(document.get("settings"), dict) else None


def _own_metrics(run: RunDir, kind: str) -> str:
    """Where the figures of a run are that solves puzzles."""
    try:
        test = (run.read_json("summary.json") or {}).get("test") or {}
    except RunError:
        test = {}
    solved = test.get("exact_accuracy")
    figure = "" if solved is None else f" It solved {percent(solved)} of its test puzzles."
    return (
        f"run {run.path}: is of kind {kind}: it solves puzzles and has no text to score.{figure} "
        f"Its own metrics are in {run.report_path} and in summary.json under test and refinement."
    )
