"""Learning-rate schedules: the factor on the peak rate as a pure function of the step.

Steps are counted from 0, so that a run of `n_steps` updates asks for steps 0 to `n_steps` - 1.

Warm-up is linear and reaches the peak in its last update: update `s` of `w` has the factor
(s + 1) / w, never 0. It is given in steps and not as a fraction, because a longer child run must
not move it. A run that is shorter than its warm-up ends on the ramp.

The decay starts at the peak and would arrive at the floor one step after the last update, so that
every update moves the model even where the floor is 0. Its length follows the length of the run.
"""

import math
from typing import Literal

from pydantic import Field

from mixlab.core.config import Config
from mixlab.core.registry import Registry


class ScheduleConfig(Config):
    """What the schedules share: a warm-up in steps and `factor`."""

    warmup_steps: int = Field(default=0, ge=0)
    """Updates until the peak learning rate; 0 starts at the peak."""

    def decay_start(self, n_steps: int) -> int:
        """The first step of the decay; `n_steps` where there is none."""
        raise NotImplementedError

    def factor(self, step: int, n_steps: int) -> float:
        """The learning rate of update `step` as a fraction of the peak, in (0, 1]."""
        assert 0 <= step < n_steps, f"step {step} of a run of {n_steps}"
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        start = self.decay_start(n_steps)
        if step < start:
            return 1.0
        return self._decayed((n_steps - step) / (n_steps - start))

    def _decayed(self, remaining: float) -> float:
        """The factor with a fraction `remaining`, in (0, 1], of the decay ahead."""
        raise NotImplementedError


class ConstantConfig(ScheduleConfig):
    """Warm-up, then the peak to the end."""

    kind: Literal["constant"] = "constant"

    def decay_start(self, n_steps: int) -> int:
        return n_steps


class LinearConfig(ScheduleConfig):
    """Warm-up, then a straight line down to the floor."""

    kind: Literal["linear"] = "linear"
    floor_frac: float = Field(default=0.0, ge=0, le=1)
    """Where the decay leads, as a fraction of the peak."""

    def decay_start(self, n_steps: int) -> int:
        return min(self.warmup_steps, n_steps)

    def _decayed(self, remaining: float) -> float:
        return _above(self.floor_frac, remaining)


class CosineConfig(ScheduleConfig):
    """Warm-up, then half a cosine wave down to the floor."""

    kind: Literal["cosine"] = "cosine"
    floor_frac: float = Field(default=0.1, ge=0, le=1)
    """Where the decay leads, as a fraction of the peak."""

    def decay_start(self, n_steps: int) -> int:
        return min(self.warmup_steps, n_steps)

    def _decayed(self, remaining: float) -> float:
        # (1 + cos(pi (1 - r))) / 2, in the form that does not cancel to 0 near the end.
        return _above(self.floor_frac, math.sin(math.pi / 2 * remaining) ** 2)


class WsdConfig(ScheduleConfig):
    """Warm-up, stable, decay: the peak is held until the last part of the run.

    Any checkpoint before the decay can be extended without loss, since the rate there does not
    depend on the length of the run. Source: Hu et al., "MiniCPM", arXiv:2404.06395; the shape
    `sqrt` is from Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations", arXiv:2405.18392.
    """

    kind: Literal["wsd"] = "wsd"
    decay_frac: float = Field(default=0.2, ge=0, le=1)
    """The last fraction of all updates that decays; the warm-up goes first where they meet."""
    floor_frac: float = Field(default=0.0, ge=0, le=1)
    """Where the decay leads, as a fraction of the peak."""
    shape: Literal["linear", "sqrt"] = "linear"
    """A straight line, or 1 - sqrt(progress), which falls fast first and then slowly."""

    def decay_start(self, n_steps: int) -> int:
        stable_end = n_steps - round(self.decay_frac * n_steps)
        return min(max(self.warmup_steps, stable_end), n_steps)

    def _decayed(self, remaining: float) -> float:
        if self.shape == "sqrt":
            # 1 - sqrt(1 - r), in the form that does not cancel to 0 near the end.
            return _above(self.floor_frac, remaining / (1 + math.sqrt(1 - remaining)))
        return _above(self.floor_frac, remaining)


def _above(floor_frac: float, share: float) -> float:
    """The point that lies `share` of the way from the floor up to the peak."""
    return min(1.0, floor_frac + (1 - floor_frac) * share)


SCHEDULES: Registry[ScheduleConfig] = Registry(
    {
        "constant": ConstantConfig,
        "linear": LinearConfig,
        "cosine": CosineConfig,
        "wsd": WsdConfig,
    }
)


class Bridge(Config):
    """How a child run gets from its parent's learning rate to its own schedule without a jump."""

    from_step: int = Field(ge=0)
    """The child's first step: as many updates as the parent's checkpoint had made."""
    from_factor: float = Field(ge=0, le=1)
    """The factor of the parent's last update, times the parent's peak over the child's peak."""
    n_steps: int = Field(ge=1)
    """Updates until the child's own schedule holds; the last of them has its exact value."""


def lr_factor(schedule: ScheduleConfig, bridge: Bridge | None, step: int, n_steps: int) -> float:
    """The learning rate of update `step` as a fraction of the peak, bridge included."""
    own = schedule.factor(step, n_steps)
    if bridge is None or step >= bridge.from_step + bridge.n_steps - 1:
        return own
    assert step >= bridge.from_step, f"step {step} lies before the bridge at {bridge.from_step}"
    share = (step - bridge.from_step + 1) / bridge.n_steps
    return bridge.from_factor + share * (own - bridge.from_factor)
