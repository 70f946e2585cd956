"""Shares of ranks, and what one process alone does: nothing."""

import pytest
import torch

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError
from mixlab.jobs.device import settle_hardware
from mixlab.parallel import ALONE, World
from mixlab.training.config import TrainConfig


class Rank(World):
    """A rank that talks to nobody."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size, store=object())  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_everything_once(n, size):
    items = [i for rank in range(size) for i in Rank(rank, size).share(n)]
    assert items == list(range(n))
    lengths = {len(Rank(rank, size).share(n)) for rank in range(size)}
    assert max(lengths) - min(lengths) <= (1 if n % size else 0)


def test_one_process_adds_up_nothing():
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.add_up(tensor) is tensor and ALONE.all_rows(tensor) is tensor
    assert ALONE.totals(3, 4) == [3, 4] and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.tell({"a": 1}) == {"a": 1} and ALONE.each_tells(5) == [5]
    with ALONE.first_goes_first():
        pass
    ALONE.leave()


def train(**settings) -> TrainConfig:
    tree = {"length": "1 steps", "optimizer": {"kind": "adamw"}, "device": "cpu", **settings}
    return decode(TrainConfig, tree)


def test_a_share_may_be_smaller_than_a_forward_pass_could_be():
    hardware = settle_hardware(train(batch_size=48, micro_batch_size=48), Rank(1, 2))
    assert hardware.world.size == 2


@pytest.mark.parametrize(
    ("settings", "size", "text"),
    [
        ({"batch_size": 9}, 2, r"train.batch_size = 9: .*2 processes.* nearest are 8 and 10"),
        ({"batch_size": 2}, 3, r"train.batch_size = 2: .*3 processes.* nearest are 3\."),
        ({"batch_size": 12, "micro_batch_size": 4}, 2, r"micro_batch_size = 4: .*6 sequences"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_shared_are_refused(settings, size, text):
    with pytest.raises(ConfigError, match=text):
        settle_hardware(train(**settings), Rank(0, size))
