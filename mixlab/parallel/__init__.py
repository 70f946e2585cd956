"""Several processes that train one model: who they are, and how they add up what each has."""

from mixlab.parallel.world import ALONE, World

__all__ = ["ALONE", "World"]
