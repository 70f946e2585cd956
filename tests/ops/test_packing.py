"""Forms of document numbers, by hand and against their definitions."""

import pytest
import torch

from mixlab.ops.packing import Packing, causal_mask

IDS = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 4, 4]])


def test_forms_by_hand():
    packing = Packing(IDS)
    assert packing.is_start().tolist() == [
        [True, False, True, False, False, True],
        [True, False, False, False, True, False],
    ]
    assert packing.position.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]
    assert packing.cu_seqlens.tolist() == [0, 2, 5, 6, 10, 12]
    assert packing.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("window", [None, 1, 2, 10])
def test_mask_is_its_definition(window):
    mask = Packing(IDS).mask(window)
    assert mask.shape == (2, 1, 6, 6)
    for b in range(2):
        for t in range(6):
            for s in range(6):
                near = window is None or t - s < window
                allowed = s <= t and bool(IDS[b, s] == IDS[b, t]) and near
                assert bool(mask[b, 0, t, s]) == allowed


def test_one_document_is_plain_causality():
    mask = Packing(torch.zeros(2, 5, dtype=torch.int32)).mask()
    assert torch.equal(mask[0, 0], torch.ones(5, 5, dtype=torch.bool).tril())


def test_last_queries_of_many_keys():
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]
