"""How many steps of a looped model a batch is trained with: fixed, or drawn per update.

A draw is a pure function of the seed and the position in the data, so a resumed run draws what the
uninterrupted one would have drawn. Depths are counted in steps; a step is one or more loops.

Source: the log-normal Poisson draw is Huginn's [arXiv:2502.05171].
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.core.registry import Registry

Chances = dict[int, float]
"""Number of steps -> its probability; adds up to 1."""


class DepthConfig(Config):
    """Base of the ways to choose a depth."""

    def chances(self) -> Chances:
        """The probability of every depth that training can draw."""
        raise NotImplementedError(type(self).__name__)

    @property
    def max_steps(self) -> int:
        """The deepest that training goes."""
        return max(self.chances())

    @property
    def mean_steps(self) -> float:
        """What a depth is on average."""
        return sum(steps * chance for steps, chance in self.chances().items())

    @property
    def trained_steps(self) -> int:
        """The depth that evaluation and generation use unless told otherwise."""
        raise NotImplementedError(type(self).__name__)

    def draw(self, seed: int, position: int) -> int:
        """The depth of the update whose examples begin at `position`."""
        generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
        steps, chances = zip(*sorted(self.chances().items()), strict=True)
        place = np.searchsorted(np.cumsum(chances), generator.random(), side="right")
        return steps[min(int(place), len(steps) - 1)]


class FixedDepth(DepthConfig):
    """The same depth in every update."""

    kind: Literal["fixed"] = "fixed"
    steps: int = Field(default=4, ge=2, le=1000)
    """Steps of every update; one loop alone would be the plain model."""

    def chances(self) -> Chances:
        return {self.steps: 1.0}

    @property
    def trained_steps(self) -> int:
        return self.steps


class UniformDepth(DepthConfig):
    """Every depth from the least to the most alike; evaluated at the most."""

    kind: Literal["uniform"] = "uniform"
    halt_min_steps: PositiveInt = 1
    """Fewest steps of an update."""
    halt_max_steps: int = Field(default=5, ge=2, le=1000)
    """Most steps of an update."""

    @model_validator(mode="after")
    def _ordered(self) -> "UniformDepth":
        _require_order(self.halt_min_steps, self.halt_max_steps)
        return self

    def chances(self) -> Chances:
        depths = range(self.halt_min_steps, self.halt_max_steps + 1)
        return dict.fromkeys(depths, 1 / len(depths))

    @property
    def trained_steps(self) -> int:
        return self.halt_max_steps


class PoissonDepth(DepthConfig):
    """1 + Poisson(exp(n)) with n normal, cut to the least and the most; evaluated at the mean."""

    kind: Literal["poisson"] = "poisson"
    mean: float = Field(default=4.0, gt=1, le=1000)
    """Mean number of steps before the cut."""
    sigma: PositiveFloat = Field(default=0.5, le=2)
    """Spread of n: how much longer the long ones are."""
    halt_min_steps: PositiveInt = 1
    """Fewest steps of an update; shorter draws count as these."""
    halt_max_steps: int = Field(default=8, ge=2, le=1000)
    """Most steps of an update; longer draws count as these."""

    @model_validator(mode="after")
    def _ordered(self) -> "PoissonDepth":
        _require_order(self.halt_min_steps, self.halt_max_steps)
        if not self.halt_min_steps <= self.mean <= self.halt_max_steps:
            raise Rule(
                "mean", self.mean,
                f"from halt_min_steps = {self.halt_min_steps} to halt_max_steps = "
                f"{self.halt_max_steps}",
            )  # fmt: skip
        return self

    def chances(self) -> Chances:
        return dict(_poisson(self.mean, self.sigma, self.halt_min_steps, self.halt_max_steps))

    @property
    def trained_steps(self) -> int:
        return max(self.halt_min_steps, round(self.mean))


DEPTHS = Registry(
    {"fixed": FixedDepth, "uniform": UniformDepth, "poisson": PoissonDepth},
)
"""Every way to choose a depth, by name."""


def _require_order(fewest: int, most: int) -> None:
    if fewest > most:
        raise Rule("halt_min_steps", fewest, f"at most halt_max_steps = {most}")


@lru_cache
def _poisson(mean: float, sigma: float, fewest: int, most: int) -> tuple[tuple[int, float], ...]:
    """The cut log-normal Poisson, its normal integrated by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    # exp(n) has mean `mean - 1` for n normal around ln(mean - 1) - sigma^2 / 2.
    rates = np.exp(math.log(mean - 1) - sigma**2 / 2 + sigma * nodes)
    weights = weights / weights.sum()
    chances, term = {}, np.exp(-rates)  # of k = 0 beyond the first step
    for steps in range(1, most):
        chances[steps] = float(weights @ term)
        term = term * rates / steps
    chances[most] = max(0.0, 1 - sum(chances.values()))
    low = sum(chances.pop(steps) for steps in range(1, fewest))
    chances[fewest] = chances.get(fewest, 0.0) + low
    total = sum(chances.values())
    return tuple((steps, chance / total) for steps, chance in sorted(chances.items()))
