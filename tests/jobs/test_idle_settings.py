"""Settings that do nothing in a run are named."""

from types import SimpleNamespace

import torch

from mixlab.jobs.device import Hardware
from mixlab.jobs.session import idle_settings
from mixlab.training.config import TrainConfig

CPU = torch.device("cpu")


def test_what_was_asked_for_in_vain_is_named():
    train = TrainConfig.model_validate(
        {"length": "5 steps", "batch_size": 1, "cuda_graphs": True, "parallel": "fsdp",
         "optimizer": {"kind": "adamw", "lr": 1e-3}}
    )  # fmt: skip
    named = [note.split(" = ")[0] for note in idle_settings(train, Hardware(CPU, "fp32"), None)]
    assert named == ["train.cuda_graphs", "train.parallel"]
    two_ranks = Hardware(CPU, "fp32", world=SimpleNamespace(size=2))
    assert idle_settings(train, two_ranks, "updates are replayed as a CUDA graph") == []


def test_defaults_are_not_told():
    train = TrainConfig.model_validate(
        {"length": "5 steps", "batch_size": 1, "optimizer": {"kind": "adamw", "lr": 1e-3}}
    )
    assert idle_settings(train, Hardware(CPU, "fp32"), None) == []
