"""Statistics of comparisons between few runs: what may be said of a difference, and what not.

NumPy only when imported; scipy and statsmodels are loaded by what needs them (extra `stats`).
"""

from mixlab.stats.arms import ArmComparison, ArmSummary, Pair, compare_arms
from mixlab.stats.bootstrap import Band, DocumentLosses, curve_band
from mixlab.stats.differences import Difference
from mixlab.stats.effects import Effect, effect
from mixlab.stats.groups import TieGroup
from mixlab.stats.halving import Halving, Rung
from mixlab.stats.noise import (
    NoiseFloor,
    noise_floor,
    sd_of_difference,
    seeds_needed,
    smallest_detectable,
)
from mixlab.stats.packages import require_stats
from mixlab.stats.pareto import front_band, front_share, pareto_front

__all__ = [
    "ArmComparison",
    "ArmSummary",
    "Band",
    "Difference",
    "DocumentLosses",
    "Effect",
    "Halving",
    "NoiseFloor",
    "Pair",
    "Rung",
    "TieGroup",
    "compare_arms",
    "curve_band",
    "effect",
    "front_band",
    "front_share",
    "noise_floor",
    "pareto_front",
    "require_stats",
    "sd_of_difference",
    "seeds_needed",
    "smallest_detectable",
]
