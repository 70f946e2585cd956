"""The next update's examples, made while the device works on this one.

What an update reads is a pure function of its position, so making it early changes nothing but the
time. On a CPU there is no device to wait for, and a second thread would take a core from the
arithmetic: there everything is made when it is asked for.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """Gives `make(position)`, one position ahead of whoever asks in order.

    At most one result waits, so memory is bounded by two updates' examples. An error of `make`
    comes up in the call that asks for its position, and never elsewhere.
    """

    def __init__(self, make: Callable[[int], T], stride: int, device: torch.device) -> None:
        self._make, self._stride = make, stride
        self._next: tuple[int, Future[T]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._device = device

    def take(self, position: int) -> T:
        """What `make` gives at `position`; that at `position + stride` is begun."""
        if self._device.type == "cpu":
            return self._make(position)
        if self._thread is None:
            self._thread = _thread(self._device)
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == position:
            made = waiting[1]
        else:  # the first call, or another position than the expected one
            made = self._thread.submit(self._make, position)
        result = made.result()
        after = position + self._stride
        self._next = (after, self._thread.submit(self._make, after))
        return result

    def close(self) -> None:
        """Drop what waits and end the thread; a later `take` begins anew."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread, self._next = None, None


def _thread(device: torch.device) -> ThreadPoolExecutor:
    """One worker, for which the current device is `device`: pinned memory belongs to it."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, thread_name_prefix="mixlab-data")
    index = torch.cuda.current_device() if device.index is None else device.index
    return ThreadPoolExecutor(
        1, thread_name_prefix="mixlab-data", initializer=torch.cuda.set_device, initargs=(index,)
    )
