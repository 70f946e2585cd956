"""Measure how fast a config trains here, and say where the time goes."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mixlab.core import units
from mixlab.core.errors import ConfigError
from mixlab.data.synthetic import RandomText
from mixlab.jobs.config import AnyRunConfig, RunConfig
from mixlab.jobs.court.preferences import preferred_kernels
from mixlab.jobs.court.session import hold_court
from mixlab.jobs.device import Hardware, describe, measure_matmul_flops, settle_hardware
from mixlab.jobs.kernel_times import KindTime, kernel_times
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.memory import fit_memory, told_of_memory
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import language_modelling, ready_model
from mixlab.nn.recursion.whole_row import row_backend
from mixlab.nn.sequence_mixers.attention import AttentionConfig
from mixlab.parallel import ALONE, World
from mixlab.training import phases
from mixlab.training.generators import seed_rank
from mixlab.training.objective import Objective, update
from mixlab.training.optimizers.base import Optimizer
from mixlab.training.phases import Phase

WARM_UP, N_PHASED = 3, 4


@dataclass(frozen=True)
class Bench:
    """What was measured; times in milliseconds per update."""

    name: str
    device: dict[str, Any]
    precision: str
    compile: bool
    n_ranks: int  # processes that shared every update
    tokens_per_update: int  # of all ranks
    first_update_s: float  # compiling and autotuning included
    ms: list[float]  # every measured update, nothing in between that waits for the device
    phases: dict[str, float]  # medians of updates that wait after every phase
    tokens_per_s: float  # at the median
    puzzles_per_s: float | None  # of a refiner: segments of puzzles
    flops_per_token: float
    matmul_flops: float  # measured here: what MFU is a share of
    mfu: float
    peak_memory_bytes: int | None  # of the GPU; None on a CPU
    backends: list[str]
    kernels: list[KindTime]
    n_graphs: int  # that torch.compile made
    n_graph_breaks: int
    n_recompiles: int  # graphs made after the warm-up
    launching: str | None  # how updates reach a GPU

    @property
    def median_ms(self) -> float:
        """The median update."""
        return statistics.median(self.ms)

    def row(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**asdict(self), "kernels": [k._asdict() for k in self.kernels]}


def bench(
    config: AnyRunConfig,
    screen: Screen,
    *,
    n_updates: int = 12,
    mean_document: int | None = None,
    world: World = ALONE,
) -> Bench:
    """Time `n_updates` updates of a config, after some that warm up; nothing is kept.

    Every rank of `world` makes this call, and takes its share of every update.

    A language model reads random tokens, in documents of `mean_document` tokens on average
    (absent: one document per sequence); a refiner its own puzzles.

    Raises:
        ConfigError: too few updates, or a setting that cannot run here.
    """
    if n_updates < 3:
        raise ConfigError("--updates", n_updates, "at least 3, so that there is a spread")
    gpus = settle_hardware(config.train, world).gpus
    with told_of_memory(config), torch.random.fork_rng(gpus):
        timing = Timing(config, screen, mean_document=mean_document, world=world)
        with screen.task("Warming up; the first update compiles", None):
            timing.warm_up()
        with screen.task("Measuring", None):
            return timing.result(timing.free(n_updates))


class Timing:
    """A config made ready on its device, to be timed: `warm_up` once, `free` at will, `result`.

    Raises:
        ConfigError: a setting that cannot run here.
    """

    def __init__(
        self,
        config: AnyRunConfig,
        screen: Screen,
        *,
        mean_document: int | None = None,
        world: World = ALONE,
    ) -> None:
        self._kind = kind_of(config)
        self._hardware = settle_hardware(config.train, world)
        self._kind.require_memory(config, self._hardware)
        self._config = config = fit_memory(config, self._hardware, screen)
        kernels = hold_court(config, self._hardware, screen)
        self._hardware = self._hardware._replace(kernels=kernels)
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._hardware.device)
        torch._dynamo.utils.counters.clear()
        seed_rank(config.seed, world)
        objective, optimizer = _ready(config, self._hardware, screen, mean_document)
        self._updates = _Updates(objective, optimizer, config, self._hardware)
        self._first_s, self._n_graphs = math.nan, 0

    @property
    def _is_cuda(self) -> bool:
        return self._hardware.device.type == "cuda"

    def warm_up(self) -> float:
        """Seconds of the first update, which compiles; a few more follow it."""
        self._first_s = self._updates.timed()
        for _ in range(WARM_UP):
            self._updates.timed()
        self._n_graphs = _n_graphs()
        return self._first_s

    def free(self, n_updates: int) -> list[float]:
        """Seconds of each of `n_updates` updates that follow each other as in training."""
        return self._updates.free(n_updates)

    def result(self, times: list[float]) -> Bench:
        """Everything about updates that took `times` (seconds); profiles a few more of them."""
        config, hardware = self._config, self._hardware
        by_phase = self._updates.phased(N_PHASED)
        kernels = kernel_times(self._updates.once, hardware.device)
        tokens, median_s = config.tokens_per_step, statistics.median(times)
        is_text = isinstance(config, RunConfig)
        flops = self._kind.flops_per_token(config)
        rate = measure_matmul_flops(hardware.device, hardware.compute_dtype)
        peak = torch.cuda.max_memory_allocated(hardware.device) if self._is_cuda else None
        return Bench(
            name=config.name,
            device=describe(hardware.device),
            precision=hardware.precision,
            compile=hardware.compile,
            n_ranks=hardware.world.size,
            tokens_per_update=tokens,
            first_update_s=self._first_s,
            ms=[1000 * s for s in times],
            phases=by_phase,
            tokens_per_s=tokens / median_s,
            puzzles_per_s=None if is_text else config.train.batch_size / median_s,
            flops_per_token=flops,
            matmul_flops=rate,
            mfu=flops * tokens / median_s / (rate * hardware.world.size),
            peak_memory_bytes=peak,
            backends=[*backends(config, hardware), self._updates.optimizer_line()],
            kernels=kernels,
            n_graphs=_n_graphs(),
            n_graph_breaks=sum(torch._dynamo.utils.counters["graph_break"].values()),
            n_recompiles=_n_graphs() - self._n_graphs,
            launching=self._updates.launching,
        )


def _ready(
    config: AnyRunConfig, hardware: Hardware, screen: Screen, mean_document: int | None
) -> tuple[Objective, Optimizer]:
    if not isinstance(config, RunConfig):
        kind = kind_of(config)
        session = kind.open_session(config, kind.prepare_data(config, screen), hardware)
        return session.objective, session.optimizer
    model = ready_model(config, hardware)
    text = RandomText(config.model.vocab_size, config.data.seq_len, config.seed, mean_document)
    objective = language_modelling(config, model, text, hardware)
    return objective, config.train.optimizer.build(model.named_parameters())


class _Updates:
    """Runs one update after the other and times them in three ways."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        config: AnyRunConfig,
        hardware: Hardware,
    ) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._train, self._device = config.train, hardware.device
        self._position = 0
        objective.model.train()

    @property
    def launching(self) -> str | None:
        """How updates reach a GPU; None where there is only one way."""
        return getattr(self._objective, "launching", None)

    def optimizer_line(self) -> str:
        """What runs the optimizer, such as "optimizer: adamw by triton"."""
        return f"optimizer: {self._train.optimizer.kind} by {self._optimizer.kernel}"

    def once(self) -> None:
        """One update; does not wait for the device."""
        metrics = update(
            self._objective,
            self._optimizer,
            self._position,
            lr_factor=0.01,  # weights stay in their usual range however long this goes on
            max_grad_norm=self._train.max_grad_norm,
        )
        self._position += metrics.n_examples

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def timed(self) -> float:
        """Seconds of one update, by itself."""
        self._wait()
        start = time.perf_counter()
        self.once()
        self._wait()
        return time.perf_counter() - start

    def free(self, n: int) -> list[float]:
        """Seconds of each of `n` updates that follow each other as in training."""
        if self._device.type != "cuda":
            return [self.timed() for _ in range(n)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self.once()
            mark.record()
        self._wait()
        pairs = itertools.pairwise(marks)
        return [before.elapsed_time(after) / 1000 for before, after in pairs]

    def phased(self, n: int) -> dict[str, float]:
        """Median milliseconds of data, forward, backward and optimizer, each waited for."""
        totals: list[dict[str, float]] = []
        for _ in range(n):
            spent = self._spent(self.once)
            totals.append(spent)
        return {
            phase: 1000 * statistics.median(t.get(phase, 0.0) for t in totals)
            for phase in ("data", "forward", "backward", "optimizer")
        }

    def _spent(self, run: Callable[[], None]) -> dict[str, float]:
        spent: dict[str, float] = {}
        current: list[tuple[Phase, float]] = []

        def mark(phase: Phase) -> None:
            self._wait()
            now = time.perf_counter()
            if current:
                before, start = current.pop()
                spent[before] = spent.get(before, 0.0) + now - start
            current.append((phase, now))

        with phases.heard_by(mark):
            run()
        return spent


def rows(found: Bench) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """The figures and the kinds of work as texts, for a person."""
    low, high = min(found.ms), max(found.ms)
    device = found.device.get("device_name") or found.device["device"]
    facts = [
        ("device", f"{device}, {found.precision}"),
        ("speed", f"{units.count(found.tokens_per_s)} tokens/s" if found.puzzles_per_s is None else
                  f"{units.count(found.puzzles_per_s)} puzzles/s, a segment each"),
        ("one update", f"{found.median_ms:.1f} ms ({low:.1f} to {high:.1f} in {len(found.ms)}), "
                       f"{found.tokens_per_update:,} tokens"),
        ("phases", ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.phases.items())),
        ("MFU", f"{units.percent(found.mfu)} of the {units.flops(found.matmul_flops)} FLOP/s that "
                "a large matrix product reaches here"),
        ("first update", f"{found.first_update_s:.1f} s, compiling and autotuning included"),
    ]  # fmt: skip
    if found.n_ranks > 1:
        facts.insert(1, ("processes", f"{found.n_ranks}, which share every update"))
    if found.peak_memory_bytes is not None:
        facts.append(("peak memory", units.size(found.peak_memory_bytes)))
    facts += [("backend", line) for line in found.backends]
    if found.compile:
        facts.append(
            ("torch.compile", f"{found.n_graphs} graphs, {found.n_graph_breaks} graph breaks, "
                              f"{found.n_recompiles} recompiled after the warm-up")
        )  # fmt: skip
    if found.launching is not None:
        facts.append(("launching", found.launching))
    total = sum(kernel.ms for kernel in found.kernels) or 1.0
    kinds = [
        (k.kind, f"{k.ms:.2f}", units.percent(k.ms / total), f"{k.n_calls:.0f}", k.longest[:60])
        for k in found.kernels
    ]
    return facts, kinds


def _n_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def backends(config: AnyRunConfig, hardware: Hardware) -> list[str]:
    """What runs each kind of layer, such as "linear: gated_deltanet by fla", and what was tried."""
    dtype = hardware.compute_dtype or torch.float32
    if not isinstance(config, RunConfig):
        model, mixer = config.model, config.model.block.sequence_mixer
        if not isinstance(mixer, AttentionConfig):
            return []
        n_positions = model.length + model.num_registers
        return [f"attention by {row_backend(mixer, n_positions, hardware.device, dtype)}"]
    lines, d_model = [], config.model.d_model
    for name, block in config.model.blocks.items():
        for mixer in (block.sequence_mixer, block.channel_mixer):
            settle = getattr(mixer, "backend_for", None)
            by = settle(hardware.device, dtype) if settle else getattr(mixer, "backend", None)
            if getattr(mixer, "backend", None) == "auto":
                by = next(iter(preferred_kernels(mixer, d_model, hardware.kernels)), by)
            if by is not None:
                lines.append(f"{name}: {mixer.kind} by {by}")
    return lines + [verdict.line() for verdict in hardware.kernels]
