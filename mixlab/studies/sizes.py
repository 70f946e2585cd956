"""Arms of equal size: which width or head size gives a model the wanted number of parameters.

The search is over whole numbers with plain arithmetic, so it chooses the same on every machine.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mixlab.core.config import Tree, diff, set_path, to_tree
from mixlab.core.errors import LabError
from mixlab.core.units import count
from mixlab.jobs.config import AnyRunConfig, RunConfig, decode_config
from mixlab.nn.budget import Budget, model_budget
from mixlab.nn.recursion.refiner import RefinerBudget, refiner_budget

CLOSE = 0.004
"""Relative distance at which a coarse grid of widths is good enough: two such arms differ < 1 %."""
_LARGEST = 2**17
_HEAD_KEYS = ("head_dim", "v_head_dim", "qk_nope_head_dim")
_WIDTH_KEYS = ("d_ff", "d_expert")


class Solved(NamedTuple):
    """What was chosen, for the report."""

    config: AnyRunConfig
    knob: str
    reached: int
    changes: dict[str, list[Any]]  # dotted key -> [old, new]


def budget_of(config: AnyRunConfig) -> Budget | RefinerBudget:
    """Parameters and FLOPs by formula."""
    if isinstance(config, RunConfig):
        return model_budget(config.model, config.data.seq_len)
    return refiner_budget(config.model)


def size_of(config: AnyRunConfig, quantity: str) -> int:
    """`params`, all of them, or `active_params`, those that one token uses."""
    budget = budget_of(config)
    return budget.n_params if quantity == "params" else budget.n_active_params


def solve_size(config: AnyRunConfig, quantity: str, target: int, knob: str) -> Solved:
    """Change `knob` so that the config's size comes as near to `target` as it can.

    Widths that are multiples of 8 are taken where they come within 0.4 %, then of 4, 2 and 1. With
    `d_model`, the first choice are multiples of the numbers of heads. Where several widths belong
    to the knob, they keep their ratios.

    Raises:
        LabError: the target lies outside what the knob can reach.
    """
    tree = to_tree(config)
    if abs(size_of(config, quantity) / target - 1) <= CLOSE / 4:
        return Solved(config, knob, size_of(config, quantity), {})
    paths = list(_paths(tree["model"], knob, "model"))
    if not paths:
        raise LabError(
            f"solve = {knob!r}: expected a setting of this model, which has no {knob} to change. "
            "Choose another one: d_ff, d_model or head_dim."
        )
    largest = max(value for _, value in paths)
    best: tuple[float, AnyRunConfig] | None = None
    for step in _steps(tree, knob):

        def build(width: int, step: int = step) -> AnyRunConfig | None:
            changed = tree
            for path, value in paths:
                scaled = max(step, round(value * width / largest / step) * step)
                changed = set_path(changed, path.split("."), scaled)
            try:
                return decode_config(changed)
            except LabError:  # a head size that its rotary share does not divide, say
                return None

        for found in _around(build, lambda c: size_of(c, quantity), target, step):
            gap = abs(size_of(found, quantity) / target - 1)
            if best is None or gap < best[0]:
                best = (gap, found)
        if best is not None and best[0] <= CLOSE:
            break
    if best is None or best[0] > 0.01:
        _refuse(best[1] if best else config, quantity, target, knob)
    found = best[1]
    changes = {key: list(pair) for key, pair in diff(tree, to_tree(found)).items()}
    return Solved(found, knob, size_of(found, quantity), changes)


def _refuse(nearest: AnyRunConfig, quantity: str, target: int, knob: str) -> None:
    raise LabError(
        f"match = {quantity}: cannot be reached by changing {knob}: the nearest has "
        f"{count(size_of(nearest, quantity))} where {count(target)} are wanted. Choose another "
        "`solve` (d_ff, d_model, head_dim) or another baseline."
    )


def _paths(node: Any, knob: str, where: str) -> Iterator[tuple[str, int]]:
    """Every key that the knob turns, with its value."""
    if knob == "d_model":
        yield "model.d_model", node["d_model"]
        return
    if not isinstance(node, dict):
        return
    part = where.rsplit(".", 1)[-1]
    wanted = {"channel_mixer": _WIDTH_KEYS if knob == "d_ff" else (),
              "sequence_mixer": _HEAD_KEYS if knob == "head_dim" else ()}.get(part, ())  # fmt: skip
    for key, value in node.items():
        if key in wanted and isinstance(value, int) and value > 0:
            yield f"{where}.{key}", value
        elif isinstance(value, dict):
            yield from _paths(value, knob, f"{where}.{key}")


def _steps(tree: Tree, knob: str) -> list[int]:
    if knob == "head_dim":
        return [8, 4, 2]  # rotary channels turn in pairs
    if knob == "d_ff":
        return [8, 4, 2, 1]
    heads = [value for path, value in _heads(tree["model"])]
    common = math.lcm(*heads, 8) if heads else 8
    return [*([common] if common <= 64 else []), 8, 4, 2]


def _heads(node: Any) -> Iterator[tuple[str, int]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "n_heads" and isinstance(value, int):
                yield key, value
            else:
                yield from _heads(value)


def _around(
    build: Callable[[int], AnyRunConfig | None],
    size: Callable[[AnyRunConfig], int],
    target: int,
    step: int,
) -> list[AnyRunConfig]:
    """The valid configs on both sides of the target; size grows with the width."""

    def at_least(width: int) -> bool:
        config = None
        while config is None and width <= _LARGEST:
            config = build(width)
            width += step
        return config is None or size(config) >= target

    low, high = 0, 1  # in steps: below the target, and at or above it
    while not at_least(high * step) and high * step <= _LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_least(middle * step) else (middle, high)
    found = (build(n * step) for n in range(max(1, low - 2), high + 3))
    return [config for config in found if config is not None]
