"""A rank that goes is noticed, and told from one that leaves in good order."""

import socket
import threading

import pytest

from mixlab.parallel.watch import KILLED_STATUS, TOLD_STATUS, Watch


class Rank:
    """One end, which notes what it would tell the user and how it would end."""

    def __init__(self, rank: int, connections: dict[int, socket.socket]) -> None:
        self.lost: list[int] = []
        self.status: int | None = None
        self._ended = threading.Event()
        self.connections = connections
        self.watch = Watch(rank, connections, self.lost.append, self._end)

    def _end(self, status: int) -> None:
        self.status = status
        self._ended.set()
        for connection in self.connections.values():
            connection.close()

    def has_ended(self, within_s: float = 10.0) -> bool:
        return self._ended.wait(within_s)


@pytest.fixture
def ranks():
    """Three ranks: two of them are connected with the first."""
    to_1, to_2 = socket.socketpair(), socket.socketpair()
    return [Rank(0, {1: to_1[0], 2: to_2[0]}), Rank(1, {0: to_1[1]}), Rank(2, {0: to_2[1]})]


def die(rank: Rank) -> None:
    """What the system does with the connections of a killed process, which says nothing itself."""
    rank.watch._has_left.set()
    for connection in rank.connections.values():
        connection.shutdown(socket.SHUT_RDWR)


def test_a_killed_rank_ends_all_and_is_told_once(ranks):
    die(ranks[2])
    assert ranks[0].has_ended() and ranks[1].has_ended()
    assert ranks[0].lost == [2] and ranks[1].lost == []
    assert ranks[0].status == KILLED_STATUS
    assert ranks[1].status == TOLD_STATUS  # the first rank told the user before


def test_when_the_first_is_killed_the_second_tells(ranks):
    die(ranks[0])
    assert ranks[1].has_ended() and ranks[2].has_ended()
    assert ranks[1].lost == [0] and ranks[2].lost == []
    assert ranks[1].status == ranks[2].status == KILLED_STATUS


def test_an_error_that_the_first_has_told_ends_the_others_without_a_word(ranks):
    ranks[0].watch.told()
    assert ranks[1].has_ended() and ranks[2].has_ended()
    assert ranks[1].status == ranks[2].status == TOLD_STATUS
    assert ranks[1].watch.first_told(0)
    assert ranks[0].status is None and not any(rank.lost for rank in ranks)


def test_ranks_that_leave_may_go_at_any_time(ranks):
    for rank in ranks:
        rank.watch.leave()
    die(ranks[1])
    die(ranks[0])
    assert not ranks[2].has_ended(0.2)
    assert [rank.status for rank in ranks] == [None] * 3
