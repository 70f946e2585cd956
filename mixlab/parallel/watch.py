"""Every rank notices at once when another one dies, and ends too.

A rank that waits for a dead one in a collective would wait for minutes, and on a GPU so deep inside
the driver that no signal handler runs. So every rank keeps a connection to the first one, and a
thread that does nothing but look at it. The system closes the connections of a process however it
dies. A rank that ends in good order, or has told the user why it fails, says so first:

    nothing said    it was killed: tell the user, and end
    LEAVES          it is done: go on
    TOLD            the user knows why: end without a word

A machine that vanishes without closing anything is noticed by TCP's keep-alive in 20 to 30 seconds.
"""

import os
import selectors
import socket
import threading
from collections.abc import Callable

import torch.distributed as dist

LEAVES, TOLD = b"L", b"T"
KILLED_STATUS, TOLD_STATUS = 1, 2
_KEY = "watch"
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_CONNECT_S = 300.0


class Watch:
    """One rank's end of the connections; `tell` says to the user that a rank was lost."""

    def __init__(
        self,
        rank: int,
        connections: dict[int, socket.socket],
        tell: Callable[[int], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._rank, self._connections = rank, connections
        self._tell, self._end = tell, end
        self._has_left = threading.Event()
        self._first_told = threading.Event()
        self._thread = threading.Thread(target=self._look, name="mixlab-ranks", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, rank: int, size: int, store: dist.Store, host: str, tell: Callable[[int], None]
    ) -> "Watch":
        """Connect all ranks with the first one, which runs on `host`."""
        if rank == 0:
            return cls(rank, _accept(size - 1, store, host), tell)
        host, port = store.get(_KEY).decode().rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
        connection.settimeout(None)
        _keep_alive(connection)
        connection.sendall(rank.to_bytes(4, "big"))
        return cls(rank, {0: connection}, tell)

    def leave(self) -> None:
        """This rank is done; whoever remains goes on without it."""
        self._say(LEAVES)

    def told(self) -> None:
        """The user has been told why this rank fails; the others end without a word."""
        self._say(TOLD)

    def first_told(self, within_s: float) -> bool:
        """Whether the first rank has told the user why it fails."""
        return self._first_told.wait(within_s)

    def _say(self, word: bytes) -> None:
        if not self._has_left.is_set():
            self._has_left.set()
            for connection in self._connections.values():
                try:
                    connection.sendall(word)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:  # that one has gone before
                    continue

    def _look(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        word = key.fileobj.recv(1)  # type: ignore[union-attr]
                    except OSError:
                        word = b""
                    selector.unregister(key.fileobj)
                    self._heard(key.data, word)

    def _heard(self, rank: int, word: bytes) -> None:
        if word == TOLD and rank == 0:
            self._first_told.set()
        if word == LEAVES or self._has_left.is_set():
            return
        if word == TOLD:
            self.told()  # the first rank passes it on
            self._end(TOLD_STATUS)
            return
        if self._rank == 0 or (rank == 0 and self._rank == 1):
            self._tell(rank)
        self.told()
        self._end(KILLED_STATUS)


def _accept(n: int, store: dist.Store, host: str) -> dict[int, socket.socket]:
    """Connections by rank; whoever else connects is turned away."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connections: dict[int, socket.socket] = {}
    # A machine may know its own name as an address that others cannot reach.
    where = host if host in _THIS_MACHINE else ""
    with socket.create_server((where, 0), family=family, backlog=n) as server:
        server.settimeout(_CONNECT_S)
        store.set(_KEY, f"{host}:{server.getsockname()[1]}")
        while len(connections) < n:
            connection, _ = server.accept()
            connection.settimeout(_CONNECT_S)
            rank = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
            if not 0 < rank <= n or rank in connections:
                connection.close()
                continue
            connection.settimeout(None)
            _keep_alive(connection)
            connections[rank] = connection
    return connections


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
