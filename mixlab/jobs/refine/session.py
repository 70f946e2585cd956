"""Everything that one sitting of a refine run holds in memory, built from a settled config."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mixlab.core.cache import cache_dir
from mixlab.core.run_dir import RunDir
from mixlab.evals.refinement import Trace, figures, trace
from mixlab.jobs.config import RefineRunConfig
from mixlab.jobs.device import Hardware
from mixlab.jobs.planning import plan_training
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import idle_settings, require_memory_for, update_seconds
from mixlab.nn.recursion.refiner import Refiner, RefinerBudget, build_refiner, refiner_budget
from mixlab.parallel import ALONE, World
from mixlab.tasks.examples import ExampleStream
from mixlab.tasks.prepare import PreparedTask, prepare_task
from mixlab.training.ema import Ema, horizon_warning
from mixlab.training.length import Length
from mixlab.training.loop import Plan, Progress
from mixlab.training.optimizers.base import Optimizer
from mixlab.training.refinement import Refinement

Row = dict[str, Any]


def prepare_puzzles(config: RefineRunConfig, screen: Screen) -> PreparedTask:
    """The run's puzzles, from the cache or made now.

    Raises:
        DataError: fewer puzzles than asked for, or a puzzle file that is wrong.
    """
    return prepare_task(config.data, cache_dir(), screen.task)


@dataclass
class RefineSession:
    """Model, optimizer and puzzles of one sitting."""

    config: RefineRunConfig  # settled: device, precision and length are decided
    data: PreparedTask
    hardware: Hardware
    budget: RefinerBudget
    model: Refiner
    optimizer: Optimizer
    ema: Ema | None
    objective: Refinement
    notes: list[str]  # what a reader of the results must know
    context: Row = field(default_factory=dict)

    def trace(self, split: str, n_steps: int) -> Trace:
        """What happens to the puzzles of a split; with an average of the weights, that one."""
        puzzles, world = self.data.sets[split], self.hardware.world
        rows = _equal_share(len(puzzles.inputs), world)

        def run() -> Trace:
            return trace(
                self.model,
                puzzles.inputs[rows],
                puzzles.labels[rows],
                puzzles.given[rows],
                n_steps=n_steps,
                batch_size=self.config.eval.batch_size,
                loss_type=self.config.loss_type,
                compute_dtype=self.hardware.compute_dtype,
            )

        with nullcontext() if self.ema is None else self.ema.applied():
            own = run()
        return own if world.size == 1 else _of_all(own, len(puzzles.inputs), world)

    def evaluate(self, split: str = "validation") -> Row:
        """A row for evals.jsonl, at the trained depth."""
        return self.row(split, self.trace(split, self.max_steps))

    def row(self, split: str, traced: Trace) -> Row:
        """The figures of a trace that is at least as deep as training."""
        halting = self.config.model.halting
        row = figures(
            traced,
            n_steps=self.max_steps,
            min_steps=halting.halt_min_steps,
            has_head=halting.n_logits > 0,
        )
        puzzles = self.data.sets[split]
        verdicts = self.data.task.check_many(
            puzzles.inputs, traced.answers[self.max_steps - 1], puzzles.labels
        )
        row["valid_accuracy"] = float(verdicts.valid.mean())
        row["eval/reasoning_steps"] = float(self.max_steps)  # all puzzles run to the trained depth
        row["flops_per_example"] = self.budget.segment_flops * self.max_steps
        return {"split": split, **row, "weights": "raw" if self.ema is None else "ema"}

    @property
    def max_steps(self) -> int:
        """Segments at the trained depth."""
        return self.config.model.halting.halt_max_steps

    def alone(self) -> "RefineSession":
        """The session for what one rank does after training."""
        return replace(self, hardware=self.hardware._replace(world=ALONE))

    def save_assets(self, run: RunDir) -> None:
        """A refine run needs no files besides its weights: the config names the task."""

    def n_computed(self, progress: Progress) -> int:
        """Labels of all segments that training has run."""
        return progress.tokens

    def plan(self, n_steps: int) -> Plan:
        """What the loop needs to know."""
        flops_per_token = self.budget.train_flops_per_token
        return plan_training(self.config, self.hardware, n_steps, flops_per_token=flops_per_token)


def _equal_share(n: int, world: World) -> np.ndarray:
    """Which of `n` puzzles this rank runs: equally many on each, the last one again to fill up."""
    n_each = -(-n // world.size)
    return np.minimum(np.arange(n_each * world.rank, n_each * (world.rank + 1)), n - 1)


def _of_all(own: Trace, n: int, world: World) -> Trace:
    """The traces of all ranks as one of `n` puzzles."""
    by_puzzle = (torch.from_numpy(array.swapaxes(0, 1).copy()) for array in own)
    return Trace(*(world.all_rows(rows)[:n].numpy().swapaxes(0, 1) for rows in by_puzzle))


def open_refine_session(
    config: RefineRunConfig, data: PreparedTask, hardware: Hardware
) -> RefineSession:
    """Build model, optimizer and stream of a settled config, as at step 0."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    model = build_refiner(config.model, config.seed).to(hardware.device)
    if config.train.compile:
        for net in (model.L_net, model.H_net):
            if net is not None:
                net.compile(dynamic=False)
    notes, ema = [], None
    if config.train.ema is not None:
        ema = Ema(model.named_parameters(), rate=config.train.ema.rate)
        warning = horizon_warning(config.train.ema.rate, int(config.train.length.amount))
        notes += [warning] if warning else []
    if config.model.halting.kind == "q_learning":
        notes.append("Q-learning looks one segment ahead: about a third more compute per update.")
    stream = ExampleStream(data.task, data.sets["train"], config.seed, augment=config.data.augment)
    objective = Refinement(
        model,
        stream,
        batch_size=config.train.batch_size,
        seed=config.seed,
        loss_type=config.loss_type,
        compute_dtype=hardware.compute_dtype,
        world=hardware.world,
        cuda_graphs=config.train.cuda_graphs,
    )
    notes += idle_settings(config.train, hardware, objective.launching)
    return RefineSession(
        config=config,
        data=data,
        hardware=hardware,
        budget=refiner_budget(config.model),
        model=model,
        optimizer=config.train.optimizer.build(model.named_parameters()),
        ema=ema,
        objective=objective,
        notes=notes,
    )


def require_refiner_memory(config: RefineRunConfig, hardware: Hardware) -> None:
    """Refuse weights, gradients and optimizer state that alone exceed the memory.

    Raises:
        ConfigError: names the sizes.
    """
    knobs = "model.d_model, model.L_layers or the mixers' widths"
    require_memory_for(refiner_budget(config.model).n_params, config.train, hardware, knobs)


def seconds_per_segment(config: RefineRunConfig, data: PreparedTask, hardware: Hardware) -> float:
    """Measured time of one update with its share of the evaluations, on a model that is dropped."""
    timed = config.model_copy(
        update={"train": config.train.model_copy(update={"length": Length(1, "steps")})}
    )
    session = open_refine_session(timed, data, hardware)
    per_update = update_seconds(session.objective, session.optimizer, config.train)
    start = time.perf_counter()
    session.evaluate()
    return per_update + (time.perf_counter() - start) / config.eval.every
