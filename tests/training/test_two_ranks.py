"""An update of two ranks is that of one process: loss, every gradient, the experts' balance."""

import sys
from pathlib import Path

import pytest
import torch
from rank_pairs import run_pair
from torch.testing import assert_close

from mixlab.training.language_modelling import LanguageModelling

sys.path.insert(0, str(Path(__file__).parent))
import two_ranks


@pytest.fixture(scope="module")
def of_two(fork_server, tmp_path_factory) -> Path:
    """What two processes computed, in one start of them for all cases."""
    folder = tmp_path_factory.mktemp("two-ranks")
    ranks = run_pair(fork_server, [folder], cwd=folder, script=two_ranks.__file__)
    assert [rank.code for rank in ranks] == [0, 0], [rank.stderr for rank in ranks]
    return folder


def test_two_ranks_compute_what_one_process_does(of_two):
    """One test for all cases: workers of a test run would start the ranks for each of them."""
    for channel in two_ranks.CHANNELS:
        for parallel in two_ranks.PARALLEL:
            same_as_one_process(channel, parallel, of_two)


def same_as_one_process(channel, parallel, of_two):
    objective = LanguageModelling(
        two_ranks.model(channel), two_ranks.Rows(),
        batch_size=two_ranks.ROWS, micro_batch_size=two_ranks.MICRO,
    )  # fmt: skip
    want = two_ranks.outcome(objective)
    got = torch.load(of_two / f"{channel}-{parallel}.pt")
    assert got.keys() == want.keys()
    assert int(got["targets"]) == sum(6 - row for row in range(6))  # counted by hand
    for name, tensor in want.items():
        # The same float64 sums in another order.
        assert_close(got[name], tensor, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
