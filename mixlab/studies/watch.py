"""A study folder seen from outside: for `status`, `report` and drivers that look on; no torch."""

from pathlib import Path
from typing import Any

from mixlab.core.json_files import write_json
from mixlab.studies.job_store import JobStore
from mixlab.studies.lease import Observer
from mixlab.studies.progress import Snapshot, snapshot, status_text
from mixlab.studies.results import collect, read_design
from mixlab.studies.rounds import Entry
from mixlab.studies.rows import RowCache


def label_of(entry: Entry) -> str:
    """A run in words."""
    what = f"{entry.arm}, seed {entry.seed}"
    return f"{what}, rate {entry.lr:.3g}" if entry.purpose == "tuning" else what


def write_results(folder: Path, cache: RowCache | None = None) -> dict[str, Any]:
    """Work results.json out anew."""
    results = collect(folder, cache)
    write_json(folder / "results.json", results)
    return results


def look_at(folder: Path, content: dict[str, Any]) -> Snapshot:
    """One look at a study folder from outside."""
    cache = RowCache(folder, content)
    labels = {entry.address: label_of(entry) for entry in cache.refresh()}
    n_expected = cache.rounds.n_expected(cache.rows)
    return snapshot(JobStore(folder), labels, cache.rows, n_expected)


def describe_status(folder: Path) -> str:
    """What `mixlab study status` prints.

    Raises:
        LabError: there is no study in this folder, or a file of it is damaged.
    """
    content = read_design(folder)
    is_driven = not Observer().is_free(folder / "driver")
    return status_text(folder, collect(folder), look_at(folder, content), is_driven)
