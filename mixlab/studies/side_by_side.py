"""Two models timed in turn, so that what else the machine does slows both alike.

On a CPU the time is that of this process, which other processes hardly change; on a GPU that of the
clock.

Where an update of a model takes a different time at each drawn depth, every depth is timed and the
times are weighed by their chances.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mixlab.data.progress import Silent
from mixlab.jobs.config import AnyRunConfig, RunConfig
from mixlab.jobs.device import settle_hardware
from mixlab.jobs.kinds import kind_of
from mixlab.training.objective import update

N_ROUNDS = 5
"""Rounds that count, after one that warms up."""
Strata = list[tuple[int, float]]
"""Positions of the data, and the chance of updates like the one there."""
_SEARCHED = 10_000
"""Updates among which one of each depth is looked for."""


class Timed(NamedTuple):
    """Mean seconds of one update of each."""

    first: float
    second: float


def time_side_by_side(first: AnyRunConfig, second: AnyRunConfig) -> Timed:
    """Time updates of two configs, whose length is in steps, in turn. Nothing is learnt."""
    configs = (first, second)
    strata = [_strata(config) for config in configs]
    with torch.random.fork_rng(settle_hardware(first.train).gpus):
        times = _measure(configs, strata)
    torch.cuda.empty_cache()  # what the models held is for the runs that follow
    means = [
        sum(chance * statistics.median(taken) for (_, chance), taken in zip(s, t, strict=True))
        for s, t in zip(strata, times, strict=True)
    ]
    return Timed(*means)


def _measure(configs: Sequence[AnyRunConfig], strata: Sequence[Strata]) -> list[list[list[float]]]:
    """The seconds of every round, by config and stratum."""
    on_cpu = settle_hardware(configs[0].train).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    steps = [_stepper(config) for config in configs]
    times: list[list[list[float]]] = [[[] for _ in each] for each in strata]
    for i in range(N_ROUNDS + 1):
        for step, each, found in zip(steps, strata, times, strict=True):
            for (position, _), taken in zip(each, found, strict=True):
                start = clock()
                step(position)
                if i:
                    taken.append(clock() - start)
    return times


def _stepper(config: AnyRunConfig) -> Callable[[int], None]:
    """One update at a position of the data, waited for; the learning rate is 0."""
    kind, hardware = kind_of(config), settle_hardware(config.train)
    session = kind.open_session(config, kind.prepare_data(config, Silent()), hardware)

    def step(position: int) -> None:
        metrics = update(
            session.objective, session.optimizer, position, lr_factor=0.0,
            max_grad_norm=config.train.max_grad_norm,
        )  # fmt: skip
        float(metrics.loss_nats)  # waits for the device

    return step


def _strata(config: AnyRunConfig) -> Strata:
    """(position, chance) of an update of every depth that training draws."""
    recursion = config.model.recursion if isinstance(config, RunConfig) else None
    if recursion is None:
        return [(0, 1.0)]
    found: dict[int, int] = {}
    chances = recursion.depth.chances()
    for i in range(_SEARCHED):
        position = i * config.train.batch_size
        found.setdefault(recursion.depth.draw(config.seed, position), position)
        if len(found) == len(chances):
            break
    met = sum(chances[depth] for depth in found)  # the rarest may not have come up
    return [(position, chances[depth] / met) for depth, position in sorted(found.items())]
