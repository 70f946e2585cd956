"""The runs of a study as rows: what the job folders say, in one form for whoever reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixlab.core.errors import LabError
from mixlab.studies.job_store import MAX_ATTEMPTS, JobFolder, JobStore
from mixlab.studies.rounds import Entry, Rounds, value_of

COSTS = ("tokens", "flops", "seconds")
_ENVIRONMENT = ("python", "platform", "cpu", "memory_bytes", "packages", "git", "accelerator")

Row = dict[str, Any]


def job_row(design: Row, folder: JobFolder, root: Path) -> Row | None:
    """One settled job as a row; None while it is not settled."""
    result = folder.result()
    where = folder.path.relative_to(root).as_posix()
    if result is not None:
        summary = result["summary"]
        run = f"{where}/done/run"
        documents = f"{where}/done/documents.json"
        return {
            "status": "done",
            "value": value_of(design, summary),
            "final": summary.get("final"),
            "test": summary.get("test"),
            "unigram_entropy_nats": (summary.get("context") or {}).get("unigram_entropy_nats"),
            "steps": summary.get("steps"),
            "tokens": summary.get("tokens"),
            "flops": summary.get("flops"),
            "seconds": summary.get("train_s"),
            "tokens_per_s": _ratio(summary.get("tokens"), summary.get("train_s")),
            "n_params": summary.get("n_params"),
            "n_active_params": summary.get("n_active_params"),
            "peak_memory_bytes": result.get("peak_memory_bytes"),
            "decode_ms": result.get("decode_ms"),
            "data": result.get("data"),
            "order": result.get("order"),
            "environment": _reduced(result.get("environment") or {}),
            "run": run,
            "curves": {"metrics": f"{run}/metrics.jsonl", "evals": f"{run}/evals.jsonl"},
            "documents": documents if (root / documents).exists() else None,
            "error": None,
        }
    if not folder.has_failed():
        return None
    attempts = folder.failures()[:MAX_ATTEMPTS]
    last, spent = attempts[-1], attempts[-1].get("spent") or {}
    run = f"{where}/failed/run"
    has_run = (root / run).is_dir()
    return {
        "status": "failed",
        "value": None,
        **dict.fromkeys(("final", "test", "unigram_entropy_nats", "steps")),
        **{key: spent.get(key) for key in COSTS},
        **dict.fromkeys(("tokens_per_s", "n_params", "n_active_params", "peak_memory_bytes")),
        **dict.fromkeys(("decode_ms", "data", "order")),
        "environment": None,
        "run": run if has_run else None,
        "curves": {"metrics": f"{run}/metrics.jsonl", "evals": f"{run}/evals.jsonl"}
        if has_run
        else None,
        "documents": None,
        "error": {
            "kind": last["kind"],
            "message": last["message"],
            "attempts": [{key: a[key] for key in ("kind", "message")} for a in attempts],
        },
    }


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _reduced(environment: Mapping[str, Any]) -> Row:
    """The part of an environment that is the same for all runs of one machine."""
    return {key: environment.get(key) for key in _ENVIRONMENT if key in environment}


class RowCache:
    """A design with the rows of its settled jobs, each read from the disk once."""

    def __init__(self, folder: Path, design: Row) -> None:
        self._store, self._folder, self.design = JobStore(folder), folder, design
        self.rounds = Rounds(design)
        self.rows: dict[str, Row] = {}

    def refresh(self) -> list[Entry]:
        """Read what has been settled since; returns every run that is wanted now."""
        while True:
            entries = self.rounds.entries(self.rows)
            new = False
            for entry in entries:
                if entry.address in self.rows:
                    continue
                row = self._row(entry)
                if row is not None:
                    self.rows[entry.address], new = row, True
            if not new:
                return entries

    def _row(self, entry: Entry) -> Row | None:
        job = self._store[entry.address]
        try:
            return job_row(self.design, job, self._folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise LabError(
                f"{job.path}: what the run left is damaged ({type(error).__name__}: {error}). "
                "Delete that folder and run the study again: it makes the run anew."
            ) from None
