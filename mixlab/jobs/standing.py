"""Where a run stands when somebody wants to go on with it."""

import os
from contextlib import suppress
from typing import Any

from mixlab.core.errors import RunError
from mixlab.core.run_dir import RunDir
from mixlab.training.checkpoint import Checkpoint


def last_summary(run: RunDir) -> dict[str, Any]:
    """How the run ended, if it says so; a damaged summary is made again at the next end."""
    try:
        summary = run.read_json("summary.json")
    except RunError:
        return {}
    return summary if isinstance(summary, dict) else {}


def is_in_use(run: RunDir) -> bool:
    """Whether another process is training it, by the lock that it would hold."""
    lock = run.path / "lock"
    if not lock.exists() or not os.access(lock, os.W_OK):  # nobody's, or a copy to read from
        return False
    try:
        with run.lock():
            return False
    except RunError:
        return True


def going_on(run: RunDir, n_steps: int, checkpoint: Checkpoint) -> str:
    """From which step, and how many recorded updates are made again, as a sentence.

    Called before the logs are cut back to the checkpoint.
    """
    text = f"Going on from step {checkpoint.state['progress']['step']} of {n_steps}"
    with suppress(OSError):  # a lost log is an error of whoever cuts it
        later = run.metrics_path.read_bytes()[checkpoint.state["log_bytes"]["metrics.jsonl"] :]
        n_lost = later.count(b"\n")  # a line without its end does not count
        if n_lost:
            what = "step that was not saved is" if n_lost == 1 else "steps that were not saved are"
            text += f"; {n_lost} {what} repeated"
    return text + "."
