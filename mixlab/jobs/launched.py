"""Whether torchrun has started this process, and beside how many others. Needs no PyTorch."""

import os

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def n_processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _NEEDED) else 1


def is_follower() -> bool:
    """Whether this is another process than the first, which speaks for all."""
    return n_processes() > 1 and int(os.environ["RANK"]) > 0


def command_as_launched(command: str) -> str:
    """A command of mixlab as it was typed, with torchrun before it where that started it."""
    n = n_processes()
    if n == 1:
        return command
    local = int(os.environ.get("LOCAL_WORLD_SIZE", n))
    nodes = f"--nnodes {n // local} " if local < n else ""
    return f"torchrun {nodes}--nproc-per-node {local} -m {command.removeprefix('python -m ')}"
