"""Join the processes that torchrun has started, and end with them."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.launched import n_processes
from mixlab.parallel import ALONE, World
from mixlab.parallel.watch import TOLD_STATUS, Watch

COLLECTIVE_LIMIT = timedelta(minutes=20)
"""A rank that lives but does not answer for so long is taken for stuck."""
_FIRST_SPEAKS_S = 10.0


class RankError(LabError):
    """An error of one rank that the first one does not have."""


@contextmanager
def joined_ranks() -> Iterator[World]:
    """The world of all processes that torchrun has started; ALONE without it.

    An error that a user can set right is told by the first rank alone, and ends the others without
    a word. When a rank is killed, the others end within seconds and say so once.
    """
    if n_processes() == 1:
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():  # or everything would begin on the first GPU
        torch.cuda.set_device(local_rank)
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=COLLECTIVE_LIMIT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore("mixlab group", store),
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_LIMIT,
    )
    store = dist.PrefixStore("mixlab", store)
    watch = Watch.open(rank, size, store, os.environ["MASTER_ADDR"], _tell_of_loss)
    world = World(rank, size, local_rank, store, on_leave=_leave(watch))
    try:
        yield world
    except LabError as error:
        if rank and watch.first_told(_FIRST_SPEAKS_S):
            sys.exit(TOLD_STATUS)
        if rank:
            error = RankError(f"rank {rank}: {error}")
        error.when_told = watch.told
        raise error from None
    world.leave()


def _leave(watch: Watch) -> Callable[[], None]:
    """What a rank does that needs the others no more."""

    def leave() -> None:
        watch.leave()
        dist.destroy_process_group()

    return leave


def _tell_of_loss(rank: int) -> None:
    show_cursor = "\x1b[?25h\r\x1b[K" if sys.__stderr__.isatty() else ""
    text = (
        f"{show_cursor}mixlab: rank {rank} has ended unexpectedly: killed, out of memory, or by an "
        "error shown above. All ranks end here. A run is as its last checkpoint left it; go on by "
        "the same command with `mixlab train --resume RUN`.\n"
    )
    os.write(2, text.encode())


# --- what only the first rank does ----------------------------------------------------------------


@contextmanager
def locked(run: RunDir, world: World) -> Iterator[None]:
    """Hold the run folder for writing, which only the first rank does."""
    with run.lock() if world.is_first else nullcontext():
        yield


def made_by_first(world: World, make: Callable[[], RunDir]) -> RunDir:
    """The folder that the first rank makes, for all; if it fails, it fails for all."""
    return RunDir(Path(world.tell(str(make().path) if world.is_first else None)))
