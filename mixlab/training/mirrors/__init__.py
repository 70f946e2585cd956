"""Mirrors of a run's numbers in other people's dashboards.

A new one: a file with its config and its mirror, and one entry in this table.
"""

from mixlab.core.registry import Registry
from mixlab.training.mirrors.base import Mirror, MirrorConfig, MirroredRun
from mixlab.training.mirrors.group import Mirrors, check_mirrors
from mixlab.training.mirrors.tensorboard import TensorBoardMirrorConfig
from mixlab.training.mirrors.trackio import TrackioMirrorConfig
from mixlab.training.mirrors.wandb import WandbMirrorConfig

MIRRORS: Registry[MirrorConfig] = Registry(
    {
        "tensorboard": TensorBoardMirrorConfig,
        "wandb": WandbMirrorConfig,
        "trackio": TrackioMirrorConfig,
    }
)

__all__ = ["MIRRORS", "Mirror", "MirrorConfig", "MirroredRun", "Mirrors", "check_mirrors"]
