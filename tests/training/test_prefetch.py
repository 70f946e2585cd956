"""Examples made ahead: the same ones, one at a time, errors where they belong, no thread left."""

import threading

import pytest
import torch

from mixlab.training.prefetch import Ahead

ELSEWHERE = torch.device("meta")  # any device that is not the CPU


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("mixlab-data")]


def test_positions_in_order_are_made_once_and_elsewhere():
    made = []

    def make(position):
        made.append((position, threading.current_thread().name))
        return 10 * position

    ahead = Ahead(make, 4, ELSEWHERE)
    assert [ahead.take(p) for p in (0, 4, 8)] == [0, 40, 80]
    ahead.close()
    assert [p for p, _ in made][:3] == [0, 4, 8] and len(made) <= 4  # the one after may have begun
    assert all(name.startswith("mixlab-data") for _, name in made)
    assert not threads()


def test_another_position_is_made_then():
    ahead = Ahead(lambda position: position, 4, ELSEWHERE)
    assert [ahead.take(p) for p in (0, 100, 104, 0)] == [0, 100, 104, 0]
    ahead.close()
    assert ahead.take(7) == 7  # begins anew
    ahead.close()


def test_an_error_surfaces_as_itself_at_its_position():
    def make(position):
        if position == 8:
            raise FileNotFoundError("the shard is gone")
        return position

    ahead = Ahead(make, 4, ELSEWHERE)
    assert ahead.take(0) == 0
    assert ahead.take(4) == 4  # 8 fails meanwhile, unheard
    with pytest.raises(FileNotFoundError, match="the shard is gone"):
        ahead.take(8)
    assert ahead.take(0) == 0
    ahead.close()


def test_a_cpu_makes_examples_when_asked():
    made = []
    ahead = Ahead(made.append, 4, torch.device("cpu"))
    ahead.take(0)
    ahead.take(4)
    assert made == [0, 4] and not threads()
    ahead.close()
