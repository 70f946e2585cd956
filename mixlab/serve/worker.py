"""The engine in a thread of its own, and what the event loop may ask of it.

Requests are handed over through an inbox and join between two steps; their events come back into
the queue of their ticket. Only this thread touches the engine, but for `Engine.fit`, which reads
nothing that changes.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixlab.core.errors import LabError
from mixlab.infer.engine import Engine, Event, Request
from mixlab.serve.metrics import Metrics

MAX_RETRY_S = 60


class Busy(Exception):  # noqa: N818 (a state, not a mistake)
    """No room in the queue."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s


class Closing(Exception):  # noqa: N818 (a state, not a mistake)
    """The server is going down."""


class Choice(NamedTuple):
    """An event of one of the answers that a ticket stands for."""

    index: int
    event: Event


class Ticket:
    """Answers that belong together, and what has become of them so far."""

    def __init__(self, number: int, requests: Sequence[Request]) -> None:
        self.number, self.requests = number, list(requests)
        self.events: asyncio.Queue[Choice] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.keys: dict[int, int] = {}  # engine's key -> index of the answer; the thread's own
        self.started = time.monotonic()


class Worker:
    """Runs an engine; `submit`, `cancel` and the counts are for the event loop."""

    def __init__(
        self, new_engine: Callable[[], Engine], *, max_queue: int, metrics: Metrics
    ) -> None:
        self._new_engine, self._max_queue, self._metrics = new_engine, max_queue, metrics
        self.engine = new_engine()
        self._changed = threading.Condition()
        self._inbox: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._tickets: dict[int, Ticket] = {}  # by engine's key; the thread's own
        self._n_open = 0  # answers accepted and not ended
        self._closing = self._abandons = False
        self._numbers = itertools.count()
        self._seconds = 1.0  # per answer, a running mean
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- for the event loop ---------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queue answers, all or none.

        Raises:
            Busy: the queue is full; says when to come back.
            Closing: the server is going down.
        """
        with self._changed:
            if self._closing:
                raise Closing
            if self._n_open + len(requests) > self.engine.max_rows + self._max_queue:
                raise Busy(self._wait_s())
            ticket = Ticket(next(self._numbers), requests)
            self._n_open += len(requests)
            self._inbox.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free what a ticket still holds; nobody waits for it any more."""
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the thread end after the step at hand; what is open gets no more events."""
        with self._changed:
            self._closing = self._abandons = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def refuse_new(self) -> None:
        """Answers under way go on, new ones are refused."""
        with self._changed:
            self._closing = True

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def n_open(self) -> int:
        """Answers accepted and not ended, waiting ones included."""
        return self._n_open

    @property
    def n_live(self) -> int:
        """Answers that are being written."""
        return self.engine.n_live

    def _wait_s(self) -> int:
        """How long the queue of now takes, roughly, in whole seconds."""
        rounds = 1 + self._max_queue / self.engine.max_rows
        return max(1, min(MAX_RETRY_S, round(self._seconds * rounds)))

    # --- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._cancelled or self._tickets):
                    if self._closing:
                        return
                    self._changed.wait()
                if self._abandons:
                    return
                arrived, self._inbox = self._inbox, deque()
                cancelled, self._cancelled = self._cancelled, deque()
            for ticket in arrived:
                self._add(ticket)
            for ticket in cancelled:
                self._remove(ticket)
            if self._tickets:
                self._step()

    def _add(self, ticket: Ticket) -> None:
        for index, request in enumerate(ticket.requests):
            try:
                key = self.engine.add(request)
            except LabError as error:  # was checked before, so this is a mistake of ours
                self._ended(ticket)
                self._deliver([(ticket, Choice(index, _failed(str(error))))])
                continue
            ticket.keys[key] = index
            self._tickets[key] = ticket

    def _remove(self, ticket: Ticket) -> None:
        for key in list(ticket.keys):
            self.engine.remove(key)
            self._forget(key, ticket)
            self._metrics.cancelled.inc()

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Exception as error:  # out of memory, or a bug: those under way are lost, others not
            self._fail_all(f"The model failed: {type(error).__name__}: {error}")
            return
        self._metrics.steps.inc()
        found = []
        for event in events:
            ticket = self._tickets.get(event.key)
            if ticket is None:
                continue
            found.append((ticket, Choice(ticket.keys[event.key], event)))
            if event.finish is not None:
                self._forget(event.key, ticket)
        self._metrics.new_tokens.inc(sum(event.token is not None for event in events))
        self._deliver(found)

    def _forget(self, key: int, ticket: Ticket) -> None:
        del self._tickets[key], ticket.keys[key]
        self._ended(ticket)

    def _ended(self, ticket: Ticket) -> None:
        with self._changed:
            self._n_open -= 1
            self._seconds += 0.1 * (time.monotonic() - ticket.started - self._seconds)

    def _fail_all(self, message: str) -> None:
        self._metrics.failures.inc()
        lost = [(t, Choice(t.keys[key], _failed(message))) for key, t in self._tickets.items()]
        for key, ticket in list(self._tickets.items()):
            self._forget(key, ticket)
        self.engine = self._new_engine()
        self._deliver(lost)

    @staticmethod
    def _deliver(found: Sequence[tuple[Ticket, Choice]]) -> None:
        """Hand events to the event loops that wait for them, once for each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Choice]]] = {}
        for ticket, choice in found:
            by_loop.setdefault(ticket.loop, []).append((ticket, choice))
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, pairs)
            except RuntimeError:  # the loop was closed, and nobody waits
                continue


def _put(pairs: Sequence[tuple[Ticket, Choice]]) -> None:
    for ticket, choice in pairs:
        ticket.events.put_nowait(choice)


def _failed(message: str) -> Event:
    return Event(-1, None, "", None, "error", message)
