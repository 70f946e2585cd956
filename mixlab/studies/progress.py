"""How far a study is: what `mixlab study status` prints and `run` shows while it goes on.

Reads JSON and directory listings only; no torch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mixlab.core import units
from mixlab.core.errors import LabError
from mixlab.core.json_files import read_json
from mixlab.studies.job_store import JobStore
from mixlab.studies.lease import read_state

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Running:
    """A job that somebody holds."""

    label: str  # arm, seed and rate
    doing: str  # its own words, such as "step 40/120  loss 5.1"
    share: float  # done, 0 to 1
    host: str


@dataclass(frozen=True)
class Snapshot:
    """One look at a study."""

    n_done: int
    n_failed: int
    n_expected: int  # runs in the end, as far as one can tell
    running: list[Running] = field(default_factory=list)
    eta_s: float | None = None
    phase: str = "runs"


class StudyScreen(Protocol):
    """A person who waits for a study."""

    def update(self, snapshot: Snapshot) -> None:
        """The state of things, several times a second."""
        ...

    def note(self, message: str) -> None:
        """One line that stays."""
        ...


class Silent:
    """Nobody waits."""

    def update(self, snapshot: Snapshot) -> None:
        pass

    def note(self, message: str) -> None:
        pass


def snapshot(
    store: JobStore,
    labels: Mapping[str, str],
    rows: Mapping[str, Row],
    n_expected: int,
    *,
    n_workers: int | None = None,
    phase: str = "runs",
) -> Snapshot:
    """Look at the jobs in `labels` (address -> words for people)."""
    settled = [rows[address] for address in labels if address in rows]
    running = [
        found
        for address, label in labels.items()
        if address not in rows and (found := _running(store, address, label)) is not None
    ]
    seconds = [row["seconds"] for row in settled if row.get("seconds")]
    eta = None
    if seconds:
        left = n_expected - len(settled) - sum(job.share for job in running)
        width = max(1, n_workers or len(running))
        eta = max(0.0, left) * sum(seconds) / len(seconds) / width
    failed = sum(row["status"] == "failed" for row in settled)
    return Snapshot(len(settled) - failed, failed, n_expected, running, eta, phase)


def _running(store: JobStore, address: str, label: str) -> Running | None:
    folder = store[address].path
    state = read_state(folder)
    if state is None or state.is_released:
        return None
    try:
        told = read_json(folder / f"work-{state.generation}" / "progress.json") or {}
    except LabError:
        told = {}
    return Running(
        label, told.get("doing", "starting"), told.get("share") or 0.0, state.holder.get("host", "")
    )


def status_line(look: Snapshot) -> str:
    """A study in one line."""
    parts = [f"{look.n_done + look.n_failed} of {look.n_expected} {look.phase}"]
    if look.n_failed:
        parts.append(f"{look.n_failed} failed")
    if look.running:
        parts.append(f"{len(look.running)} running")
    if look.eta_s and look.n_done + look.n_failed < look.n_expected:
        parts.append(f"ETA {units.duration(look.eta_s)}")
    return ", ".join(parts)


class PlainStudyScreen:
    """Lines for logs and pipes: one when something has changed, and one every half minute."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float], *, every_s: float = 30.0
    ) -> None:
        self._write, self._clock, self._every_s = write, clock, every_s
        self._last: tuple[int, str] | None = None
        self._at = -float("inf")

    def update(self, snapshot: Snapshot) -> None:
        mark = (snapshot.n_done + snapshot.n_failed, snapshot.phase)
        now = self._clock()
        # Many small runs end within a second: a line for each would bury the notes.
        if now - self._at >= (3.0 if mark != self._last else self._every_s):
            self._last, self._at = mark, now
            self._write(status_line(snapshot))

    def note(self, message: str) -> None:
        self._write(message)


# --- mixlab study status --------------------------------------------------------------------------


def status_text(folder: Path, results: Row, look: Snapshot, is_driven: bool) -> str:
    """The whole of `mixlab study status`."""
    state = "finished" if results["is_complete"] else "running" if is_driven else "stopped"
    head = f"{results['name']}{' (smoke size)' if results['is_smoke'] else ''}: {state}, "
    lines = [head + status_line(look), ""]
    lines += table(_COLUMNS, [_arm_cells(arm, results) for arm in results["arms"]])
    if look.running:
        lines += ["", "Running now:"]
        lines += [f"  {job.label}: {job.doing}" for job in look.running[:16]]
    lines += _errors(results)
    if results["set_aside"]:
        lines += ["", *set_aside_lines(results["set_aside"])]
    cost = results["cost"]
    lines += [
        "",
        f"So far {cost['runs']} runs, {units.count(cost['tokens'])} tokens, "
        f"{units.flops(cost['flops'])} FLOPs, {units.duration(cost['seconds'])} of training; "
        f"of these {cost['tuning']['runs']} runs only to find rates.",
    ]
    lines += [matched_line(results)] if results["match"]["realised"] else []
    if not results["is_complete"] and not is_driven:
        name = results["name"] + (" --smoke" if results["is_smoke"] else "")
        lines.append(f"Go on with: mixlab study run {name} (in the folder {folder})")
    return "\n".join(lines)


_COLUMNS = ("arm", "state", "rate", "seeds done", "metric (mean)", "parameters", "tokens")


def _arm_cells(arm: Row, results: Row) -> list[str]:
    tuning, values = arm["tuning"], list(arm["values"].values())
    rate = f"{arm['lr']:.3g}"
    if tuning is not None:
        n = sum(point["status"] != "waiting" for point in tuning["points"])
        words = {"interior": "tuned", "edge": "at the edge", "unfinished": f"{n} tried"}
        rate = f"{rate} ({words.get(tuning['status'], tuning['status'])})"
    mean = f"{sum(values) / len(values):.4f}" if values else ""
    planned = arm["planned"] or {}
    return [
        arm["name"], arm["status"], rate, f"{len(values)}/{arm['n_seeds_planned']}", mean,
        units.count(arm["n_params"]), units.count(planned.get("tokens")),
    ]  # fmt: skip


def _errors(results: Row) -> list[str]:
    failed = {address: job for address, job in results["jobs"].items() if job["status"] == "failed"}
    lines = []
    for address, job in failed.items():
        if job["error"]["kind"] == "diverged" and "seed" not in job["purposes"]:
            continue  # a rate that was too high is what tuning looks for
        what = f"{', '.join(job['arms'])}, seed {job['seed']}, rate {job['lr']:.3g}"
        lines += [f"  {what}: {job['error']['kind']}: {job['error']['message']}",
                  f"    see jobs/{address}"]  # fmt: skip
    return ["", "Failed, after a second try:", *lines] if lines else []


def set_aside_lines(entries: Iterable[Row]) -> list[str]:
    """What is kept but not counted, by reason."""
    reasons: dict[str, int] = {}
    for entry in entries:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    return [
        f"Kept but not counted: {n} {'result' if n == 1 else 'results'} {reason}."
        for reason, n in sorted(reasons.items())
    ]


def matched_line(results: Row) -> str:
    """How equal the matched quantities came out."""
    parts = []
    for name, found in results["match"]["realised"].items():
        show = units.duration if name == "seconds" else units.count
        text = (
            f"{name} {show(found['least'])} to {show(found['most'])} ({found['spread']:.2%} apart"
        )
        parts.append(f"{text}{')' if found['is_within'] else ', NOT within 1 %)'}")
    return f"Matched: {'; '.join(parts)}."


def table(columns: Iterable[str], rows: list[list[str]]) -> list[str]:
    """Aligned columns; the first is text, the others too."""
    cells = [list(columns), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
