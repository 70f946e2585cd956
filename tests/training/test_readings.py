"""What is read of an update is what its tensors hold, whatever their dtype and shape."""

import torch

from mixlab.training.objective import StepMetrics
from mixlab.training.readings import Figures, Reading

METRICS = StepMetrics(
    torch.tensor(2.5),
    torch.tensor(0.1, dtype=torch.float64),
    7,
    torch.tensor(0.25),
    {
        "layer_00": {"load": torch.tensor([0.5, 0.25, 0.25]), "dead": torch.tensor(2**40 + 1)},
        "layer_01": {"load": torch.tensor([1.0, 0.0, 0.0]), "dead": torch.tensor(2)},
    },
    figures={"steps": torch.tensor(3), "penalty": torch.tensor(0.5)},
)
WANT = Figures(
    2.5,
    0.1,
    0.25,
    {"steps": 3.0, "penalty": 0.5},
    {
        "layer_00": {"load": [0.5, 0.25, 0.25], "dead": 2**40 + 1},
        "layer_01": {"load": [1.0, 0.0, 0.0], "dead": 2},
    },
)


def test_figures_are_those_of_the_tensors():
    assert Reading(METRICS).figures() == WANT


def test_what_is_absent_stays_absent():
    bare = StepMetrics(torch.tensor(1.0), torch.tensor(2.0), 1, None, {})
    assert Reading(bare).figures() == Figures(1.0, 2.0, None, {}, {})
