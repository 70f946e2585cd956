"""The average of the weights: hand cases, exact swap and restore."""

import pytest
import torch
from torch import nn

from mixlab.core.errors import CheckpointError
from mixlab.training.ema import Ema, horizon_warning


def test_hand_case_with_warm_up() -> None:
    weight = nn.Parameter(torch.zeros(1))
    ema = Ema([("w", weight)], rate=0.15)
    expected = 0.0
    # The warm-up rule gives 1/10, then 2/11 = 0.18, which the rate cuts to 0.15.
    for step, rate in enumerate([0.1, 0.15, 0.15]):
        with torch.no_grad():
            weight.fill_(step + 1.0)
        ema.update(step)
        expected = rate * expected + (1 - rate) * (step + 1.0)
        assert ema.rate(step) == pytest.approx(rate)
        # float32 arithmetic beside Python's float64
        assert ema.state_tensors()["w"].item() == pytest.approx(expected, rel=1e-6)


def test_applied_swaps_and_restores_exactly_even_after_an_error() -> None:
    model = nn.Linear(3, 3)
    ema = Ema(model.named_parameters(), rate=0.9)
    with torch.no_grad():
        model.weight.add_(torch.randn(3, 3))
    ema.update(100)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="evaluation"), ema.applied():
        assert torch.equal(model.weight, ema.state_tensors()["weight"])
        assert not torch.equal(model.weight, own)
        raise RuntimeError("evaluation failed")
    assert torch.equal(model.weight, own)


def test_state_restores_bit_for_bit_and_refuses_another_models() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    ema, other = Ema(first.named_parameters(), 0.5), Ema(second.named_parameters(), 0.5)
    other.load_state_tensors(ema.state_tensors())
    assert all(torch.equal(t, other.state_tensors()[k]) for k, t in ema.state_tensors().items())
    first_state = ema.state_tensors()["weight"]
    assert other.state_tensors()["weight"].data_ptr() != first_state.data_ptr()
    with pytest.raises(CheckpointError, match="'bias'"):
        other.load_state_tensors({"weight": torch.zeros(2, 3)})


def test_horizon_warning() -> None:
    assert horizon_warning(0.99, 300) is None  # looks back over 100 updates
    assert "100" in (horizon_warning(0.99, 299) or "")
    assert horizon_warning(0.5, 1) is not None
