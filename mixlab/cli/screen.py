"""The terminal: bars, one status line, tables. Plain lines when nobody looks at a terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mixlab.jobs.show import Description

Row = dict[str, Any]


class TerminalScreen:
    """A live status line below the notes that scroll by."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        number = bar.add_task(description, total=total)
        self._live.update(bar, refresh=True)
        try:
            yield lambda n: bar.advance(number, n)
        finally:
            self._live.update(Text(""), refresh=True)

    def note(self, message: str) -> None:
        self._console.print(Text(message))

    def training(self, row: Row, n_steps: int, eta_s: float | None) -> None:
        from mixlab.jobs.screen import status_text

        line = Text(status_text(row, n_steps, eta_s), no_wrap=True, overflow="ellipsis")
        self._live.update(line)

    def evaluation(self, row: Row, context: Row) -> None:
        from mixlab.jobs.screen import evaluation_text

        self._console.print(Text(evaluation_text(row, context)))


@contextmanager
def open_screen() -> Iterator[Any]:
    """A screen on standard error: live on a terminal, plain lines otherwise."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        from mixlab.jobs.screen import PlainScreen

        yield PlainScreen()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield TerminalScreen(console, live)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; tab-separated when that is not a terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def print_show(description: "Description") -> None:
    """The whole of `mixlab show`."""
    from mixlab.jobs.show import LAYER_COLUMNS

    print(f"{description.name}: {description.about}\n" if description.about else description.name)
    width = max(len(name) for name, _ in description.facts)
    for name, value in description.facts:
        print(f"  {name:<{width}}  {value}")
    print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(LAYER_COLUMNS):
        table.add_column(column, justify="right" if i >= 4 else "left", no_wrap=True)
    for row in description.layers:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
    print("\nexports to")
    width = max(len(name) for name, _ in description.exports)
    for name, value in description.exports:
        print(f"  {name:<{width}}  {value}")
