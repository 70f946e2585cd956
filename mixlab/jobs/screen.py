"""What a job tells the person who waits for it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mixlab.core import units
from mixlab.data.progress import Progress

Row = dict[str, Any]


class Screen(Progress, Protocol):
    """A listener of a job: bars for preparation, one status for training, notes between."""

    def training(self, row: Row, n_steps: int, eta_s: float | None) -> None:
        """One update is done; `row` is a row of metrics.jsonl."""
        ...

    def evaluation(self, row: Row, context: Row) -> None:
        """One evaluation is done; `context` holds the figures to read it beside."""
        ...


def status_text(row: Row, n_steps: int, eta_s: float | None) -> str:
    """The status of a running training in one line."""
    parts = [
        f"step {row['step']}/{n_steps}",
        f"loss {row['loss_nats']:.3f}",
        f"lr {row['lr']:.2e}",
        f"grad {row['grad_norm']:.2f}",
    ]
    if row.get("tokens_per_s"):
        parts.append(f"{units.count(row['tokens_per_s'])} tok/s")
    if row.get("mfu"):
        parts.append(f"MFU {units.percent(row['mfu'])}")
    if eta_s is not None:
        parts.append(f"ETA {units.duration(eta_s)}")
    return "  ".join(parts)


def evaluation_text(row: Row, context: Row) -> str:
    """One evaluation in one line, beside the entropy that no context-free model can beat."""
    if "exact_accuracy" in row:
        return (
            f"step {row['step']}: {units.percent(row['exact_accuracy'])} of the validation puzzles"
            f" solved, {units.percent(row['blank_accuracy'])} of their blanks right, loss"
            f" {row['loss_nats']:.4f} nats after {row['eval/reasoning_steps']:g} segments"
        )
    return (
        f"step {row['step']}: validation loss {row['loss_nats']:.4f} nats"
        f" ({row['bits_per_byte']:.3f} bits/byte), accuracy {units.percent(row['accuracy'])},"
        f" perplexity {units.three_digits(row['perplexity'])};"
        f" unigram entropy {context['unigram_entropy_nats']:.4f}"
    )


class PlainScreen:
    """Lines of text for logs, pipes and notebooks: a status every few seconds."""

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self._every_s, self._clock = every_s, clock
        self._last = -float("inf")

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        start = shown = self._clock()
        done = 0

        def advance(n: int) -> None:
            nonlocal done, shown
            done += n
            now = self._clock()
            if now - shown >= self._every_s:
                shown = now
                share = f" {units.percent(done / total)}" if total else f" {units.count(done)}"
                rest = (now - start) * (total - done) / done if total and done else None
                eta = f", ETA {units.duration(rest)}" if rest is not None else ""
                self._write(f"{description}:{share}{eta}")

        yield advance
        if self._clock() - start >= self._every_s:
            self._write(f"{description}: done in {units.duration(self._clock() - start)}")

    def note(self, message: str) -> None:
        self._write(message)

    def training(self, row: Row, n_steps: int, eta_s: float | None) -> None:
        now = self._clock()
        if now - self._last >= self._every_s or row["step"] == n_steps:
            self._last = now
            self._write(status_text(row, n_steps, eta_s))

    def evaluation(self, row: Row, context: Row) -> None:
        self._write(evaluation_text(row, context))
