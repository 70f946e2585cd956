"""Arms of equal length: how many updates give each arm the same tokens, FLOPs or seconds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mixlab.core.config import to_tree
from mixlab.core.errors import LabError
from mixlab.core.units import count, duration
from mixlab.jobs.config import AnyRunConfig, decode_config
from mixlab.jobs.kinds import kind_of
from mixlab.studies.study_file import TOLERANCE
from mixlab.training.length import Length


class Costs(NamedTuple):
    """What one update of an arm takes."""

    tokens: int
    flops: float
    seconds: float | None  # measured; None where nothing asks for it

    @classmethod
    def of(cls, config: AnyRunConfig, seconds: float | None) -> "Costs":
        tokens = config.tokens_per_step
        return cls(tokens, tokens * kind_of(config).flops_per_token(config), seconds)

    def per_step(self, quantity: str) -> float:
        """One update in the unit of a matched quantity."""
        value = {"steps": 1, "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds}
        found = value[quantity]
        assert found is not None, "a length in seconds needs a measured step"
        return found


def needs_timing(quantity: str, length: Length) -> bool:
    """Whether updates have to be timed before the lengths are known."""
    return "seconds" in (quantity, length.unit)


def match_lengths(
    quantity: str, length: Length, costs: Mapping[str, Costs], baseline: str
) -> dict[str, int]:
    """Updates of every arm, so that all spend as much of `quantity` as the baseline does.

    Raises:
        LabError: whole updates are too coarse for that; names the arm and a length that would do.
    """
    base = costs[baseline]
    n_base = length.n_steps(base.tokens, base.flops / base.tokens, base.seconds)
    target = n_base * base.per_step(quantity)
    steps = {name: max(1, round(target / cost.per_step(quantity))) for name, cost in costs.items()}
    spent = {name: steps[name] * cost.per_step(quantity) for name, cost in costs.items()}
    least, most = min(spent, key=spent.__getitem__), max(spent, key=spent.__getitem__)
    if spent[most] / spent[least] - 1 > TOLERANCE:
        off = max(spent, key=lambda name: abs(spent[name] / target - 1))
        longer = max(cost.per_step(quantity) for cost in costs.values()) / (TOLERANCE / 2)
        raise LabError(
            f"match = {quantity}: cannot be reached within {TOLERANCE:.0%}: arm {off!r} makes "
            f"whole updates, and {steps[off]} of them are {spent[off] / target - 1:+.1%} off "
            f"{_amount(quantity, target)}. Lengthen the budget to about "
            f"{_amount(quantity, longer)}, or use smaller batches."
        )
    return steps


def _amount(quantity: str, value: float) -> str:
    return duration(value) if quantity == "seconds" else f"{count(value)} {quantity}"


def with_steps(config: AnyRunConfig, n_steps: int) -> AnyRunConfig:
    """The config with its length settled."""
    train = {**to_tree(config.train), "length": f"{n_steps} steps"}
    return decode_config({**to_tree(config), "train": train})


def spread(values: Sequence[float]) -> float:
    """By how much the largest exceeds the smallest, as a share."""
    return max(values) / min(values) - 1 if values and min(values) > 0 else 0.0
