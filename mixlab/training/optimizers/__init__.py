"""The optimizers by name."""

from mixlab.core.registry import Registry
from mixlab.training.optimizers.adamw import AdamWConfig
from mixlab.training.optimizers.base import Optimizer, OptimizerConfig
from mixlab.training.optimizers.muon import MuonConfig

__all__ = ["OPTIMIZERS", "AdamWConfig", "MuonConfig", "Optimizer", "OptimizerConfig"]

OPTIMIZERS: Registry[OptimizerConfig] = Registry({"adamw": AdamWConfig, "muon": MuonConfig})
