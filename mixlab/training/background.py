"""Checkpoints written while training goes on: a copy on the host now, the disk later.

What a run can be resumed from is what is complete on the disk, so a process that is killed during
a write goes on from the checkpoint before it. At most one write is under way; a further one waits
for it, and an error of a write comes up in the thread that trains.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mixlab.core.provenance import memory_bytes
from mixlab.training import tensor_file

Groups = Mapping[str, Mapping[str, Tensor]]

# A copy beyond this share of the machine's memory is not made; such a state is written at once.
_MOST_MEMORY = 0.25


class BackgroundWriter:
    """Hands copies of tensors to a function that runs in another thread, one call at a time."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def submit(self, groups: Groups, write: Callable[[Groups], None]) -> None:
        """Copy the tensors as they are now, and begin `write` with the copies.

        Raises:
            Exception: what the write before this one raised.
        """
        self.wait()
        if not _has_room(groups):
            write(groups)
            return
        copies, arrived = self._copied(groups)

        def run() -> None:
            for event in arrived:
                event.synchronize()
            write(copies)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="mixlab-save")
        self._running = self._thread.submit(run)

    def check(self) -> None:
        """Raise what the write raised, if it has ended so; never waits."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            Exception: what the write raised.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Let a write end and the thread with it; an error that nobody has heard of is dropped."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread, self._running, self._buffers = None, None, {}

    def _copied(self, groups: Groups) -> tuple[Groups, list[torch.cuda.Event]]:
        """The tensors on the host, tied ones as one, and what to wait for before reading them.

        Copies from a GPU run in its stream, so that later updates wait for them and the host does
        not. The memory is kept from save to save, as fresh pages cost more than the copy.
        """
        copies: dict[str, dict[str, Tensor]] = {}
        devices: set[torch.device] = set()
        for group, members in groups.items():
            tied = tensor_file.ties(members)
            own: dict[str, Tensor] = {}
            for name, tensor in members.items():
                if name in tied:
                    continue
                is_cuda = tensor.device.type == "cuda"
                buffer = self._buffer((group, name), tensor, pinned=is_cuda)
                own[name] = buffer.copy_(tensor.detach(), non_blocking=is_cuda)
                if is_cuda:
                    devices.add(tensor.device)
            copies[group] = {name: own[tied.get(name, name)] for name in members}
        events = []
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            events.append(event)
        return copies, events

    def _buffer(self, key: tuple[str, str], like: Tensor, *, pinned: bool) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = _empty(like, pinned=pinned)
            self._buffers[key] = buffer
        return buffer


def _empty(like: Tensor, *, pinned: bool) -> Tensor:
    """Memory on the host for a tensor like this; page-locked, as far as the system grants that."""
    if pinned:
        try:
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        except RuntimeError:  # a limit on locked memory: the copy is slower then, and as good
            pass
    return torch.empty(like.shape, dtype=like.dtype)


def _has_room(groups: Groups) -> bool:
    memory = memory_bytes()
    n_bytes = sum(tensor.nbytes for members in groups.values() for tensor in members.values())
    return memory is None or n_bytes <= _MOST_MEMORY * memory
