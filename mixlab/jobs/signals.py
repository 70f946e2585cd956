"""Ctrl-C and SIGTERM as a wish to stop after the update at hand."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody wants the job to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block, `tell` so, and let a second one act as usual.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in caught}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = number
        tell("Stopping and saving after the update at hand; Ctrl-C again stops at once, unsaved.")
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in caught:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
