"""Two processes that train together, with the environment that torchrun gives them."""

import socket
from collections.abc import Sequence
from pathlib import Path

from fork_server import Command, ForkServer, Result


def environments(n: int = 2) -> list[dict[str, str]]:
    """The variables of every rank of one machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n),
    }  # fmt: skip
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def start_pair(
    server: ForkServer, argv: Sequence[object], *, cwd: Path, script: str | None = None
) -> list[Command]:
    """Start `mixlab ARGV...`, or a script, as two ranks."""
    return [server.start(argv, cwd=cwd, script=script, **env) for env in environments()]


def run_pair(
    server: ForkServer, argv: Sequence[object], *, cwd: Path, script: str | None = None
) -> list[Result]:
    """Run `mixlab ARGV...`, or a script, as two ranks to its end."""
    return [command.wait() for command in start_pair(server, argv, cwd=cwd, script=script)]
