"""The optimizers by name."""

from mixlab.core.registry import Registry
from mixlab.train.optimizers.adamw import AdamWConfig
from mixlab.train.optimizers.base import Optimizer, OptimizerConfig
from mixlab.train.optimizers.muon import MuonConfig

__all__ = ["OPTIMIZERS", "AdamWConfig", "MuonConfig", "Optimizer", "OptimizerConfig"]

OPTIMIZERS: Registry[OptimizerConfig] = Registry({"adamw": AdamWConfig, "muon": MuonConfig})
