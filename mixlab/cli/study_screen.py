"""The terminal while a study runs: one bar, and a line for every run that is going on."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mixlab.studies.progress import PlainStudyScreen, Snapshot, status_line


class TerminalStudyScreen:
    """A bar for the study and a line for every run that is going on."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"),
            console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("study", total=None, words="")

    def update(self, snapshot: Snapshot) -> None:
        self._bar.update(
            self._task,
            total=snapshot.n_expected,
            completed=snapshot.n_done + snapshot.n_failed + sum(r.share for r in snapshot.running),
            words=status_line(snapshot),
        )
        lines = [
            Text(f"  {job.label}: {job.doing}", no_wrap=True, overflow="ellipsis", style="dim")
            for job in snapshot.running[:12]
        ]
        self._live.update(Group(self._bar, *lines))

    def note(self, message: str) -> None:
        self._console.print(Text(message))


@contextmanager
def open_study_screen() -> Iterator[Any]:
    """A screen on standard error: live on a terminal, plain lines otherwise."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield PlainStudyScreen(
            lambda text: print(text, file=sys.stderr, flush=True), time.monotonic
        )
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield TerminalStudyScreen(console, live)
