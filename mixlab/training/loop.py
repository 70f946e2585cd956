"""The training loop: straight down, no callbacks.

Position in the data, learning rate and batch are pure functions of the step, so a run is decided
by its config; what a checkpoint must add are the tensors and the few counters in `Progress`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import nn

from mixlab.core.errors import LabError
from mixlab.parallel.shards import total_norm
from mixlab.training.config import CheckpointConfig, EvalConfig, TrainConfig
from mixlab.training.ema import Ema
from mixlab.training.meters import Throughput, mfu
from mixlab.training.objective import Objective, StepMetrics, update
from mixlab.training.readings import Reading
from mixlab.training.schedule import lr_factor

Row = dict[str, Any]


class NonFiniteLossError(LabError):
    """The loss or the gradient became NaN or infinite; training cannot go on from here."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` updates; all that a checkpoint keeps besides tensors."""

    step: int = 0
    position: int = 0  # training sequences drawn so far
    tokens: int = 0  # target tokens so far
    elapsed_s: float = 0.0  # seconds of all sittings, evaluations and saves included
    best_loss_nats: float | None = None
    best_step: int | None = None
    evals_without_improvement: int = 0
    last_eval_step: int | None = None
    eval_s: float = 0.0  # of elapsed_s, what evaluations took
    save_s: float = 0.0  # of elapsed_s, how long training stood still for saves

    def after(self, metrics: StepMetrics) -> "Progress":
        """Where the run stands after one more update."""
        return replace(
            self,
            step=self.step + 1,
            position=self.position + metrics.n_examples,
            tokens=self.tokens + metrics.n_targets,
        )


class Recorder(Protocol):
    """Where the loop's results go. The loop decides when; a recorder only writes."""

    def metrics(self, row: Row) -> None:
        """One update's figures."""
        ...

    def evaluation(self, row: Row) -> None:
        """One evaluation's figures."""
        ...

    def checkpoint(self, progress: Progress, *, is_best: bool) -> None:
        """Save everything that the run needs to go on from `progress`."""
        ...


@dataclass(frozen=True)
class Plan:
    """The parts of the config that the loop needs, with the length settled in steps."""

    train: TrainConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    n_steps: int
    flops_per_token: float
    peak_flops: float | None  # of the device at the training precision; None if not known
    decay_start: int  # saved there, so that `mixlab extend` can go on before the decay
    tokens_per_example: int | None = None  # computed, targets or not; None: as many as targets

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether an evaluation and a save come after update number `step`."""
        is_last = step == self.n_steps
        is_save = step % self.checkpoint.every == 0 or step == self.decay_start
        return is_last or step % self.eval.every == 0, is_last or is_save

    def n_computed(self, n_targets: int, n_examples: int) -> int:
        """Tokens that went through the model, which is what FLOPs are counted for."""
        return (
            n_targets if self.tokens_per_example is None else n_examples * self.tokens_per_example
        )


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    progress: Progress
    status: str  # "finished", "stopped early" or "interrupted"


def train(
    objective: Objective,
    optimizer: Any,
    ema: Ema | None,
    plan: Plan,
    progress: Progress,
    *,
    evaluate: Callable[[], Row],
    recorder: Recorder,
    is_stop_requested: Callable[[], bool],
    clock: Callable[[], float],
) -> Outcome:
    """Run the updates from `progress` to the end of the plan.

    `evaluate` measures the model as it is and returns a row for evals.jsonl. A stop request is
    honoured after the update at hand, with a checkpoint.

    Raises:
        NonFiniteLossError: names the step; no checkpoint is written from there.
    """
    model = objective.model
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    breaks = _Breaks(model, plan, evaluate, recorder, clock, clock() - progress.elapsed_s)
    now = breaks.now
    meter = Throughput(clock=clock)
    pending: tuple[float, StepMetrics, Reading] | None = None

    if _has_stalled(plan, progress) and progress.step < plan.n_steps:
        return Outcome(progress, "stopped early")  # killed before it could say so
    if progress.last_eval_step is None:
        progress, _ = breaks.evaluated(progress)
    model.train()
    meter.restart(progress.tokens)
    while progress.step < plan.n_steps:
        factor = lr_factor(plan.train.schedule, plan.train.bridge, progress.step, plan.n_steps)
        metrics = update(
            objective,
            optimizer,
            progress.position,
            lr_factor=factor,
            max_grad_norm=plan.train.max_grad_norm,
        )
        if ema is not None:
            ema.update(progress.step)
        # Reading figures waits for the device, so an accelerator is read one update late.
        if pending is not None:
            _record(recorder, plan, meter, progress, *pending)
        progress = now(progress.after(metrics))
        pending = (factor, metrics, Reading(metrics))

        is_last = progress.step == plan.n_steps
        wants_stop = is_stop_requested()
        is_eval, is_save = plan.due(progress.step)
        is_save = is_save or wants_stop
        if not (is_eval or is_save or is_on_cpu):
            continue
        _record(recorder, plan, meter, progress, *pending)
        pending = None
        if not (is_eval or is_save):
            continue
        is_best = False
        if is_eval:
            progress, is_best = breaks.evaluated(progress)
            model.train()
        has_stalled = _has_stalled(plan, progress)
        if is_save or is_best or has_stalled:
            progress = breaks.saved(progress, is_best=is_best)
        meter.restart(progress.tokens)
        if has_stalled and not is_last:
            return Outcome(now(progress), "stopped early")
        if wants_stop and not is_last:
            return Outcome(now(progress), "interrupted")
    return Outcome(now(progress), "finished")


class _Breaks(NamedTuple):
    """What comes between updates, and how long it takes."""

    model: nn.Module
    plan: Plan
    evaluate: Callable[[], Row]
    recorder: Recorder
    clock: Callable[[], float]
    start_s: float  # on the clock, of a run without breaks between its sittings

    def now(self, progress: Progress) -> Progress:
        """The progress as of now."""
        return replace(progress, elapsed_s=self.clock() - self.start_s)

    def evaluated(self, progress: Progress) -> tuple[Progress, bool]:
        """Measure; also whether this is the best so far."""
        began_s = self.clock()
        progress, is_best = _evaluate(self.evaluate, self.recorder, self.plan, self.now(progress))
        return replace(progress, eval_s=progress.eval_s + self.clock() - began_s), is_best

    def saved(self, progress: Progress, *, is_best: bool) -> Progress:
        """Save, unless the weights are spoilt."""
        began_s = self.clock()
        _require_finite_weights(self.model, progress.step)
        self.recorder.checkpoint(self.now(progress), is_best=is_best)
        return replace(progress, save_s=progress.save_s + self.clock() - began_s)


def _require_finite_weights(model: nn.Module, step: int) -> None:
    """An update can spoil the weights after a loss that was still good; that is never saved."""
    if not total_norm([p.detach() for p in model.parameters()]).isfinite():
        raise NonFiniteLossError(
            f"step {step}: this update made weights that are not finite, though its loss was."
        )


def _record(
    recorder: Recorder,
    plan: Plan,
    meter: Throughput,
    progress: Progress,
    factor: float,
    metrics: StepMetrics,
    reading: Reading,
) -> None:
    """Read the figures of the update that led to `progress`, judge them, write them down."""
    found = reading.figures()
    loss, grad_norm = found.loss_nats, found.grad_norm
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteLossError(
            f"step {progress.step}: the loss is {loss} and the gradient norm {grad_norm}, which "
            "no further update can repair."
        )
    rate = meter.update(progress.tokens)
    row: Row = {
        "step": progress.step,
        "tokens": progress.tokens,
        "flops": plan.n_computed(progress.tokens, progress.position) * plan.flops_per_token,
        "elapsed_s": round(progress.elapsed_s, 3),
        "loss_nats": loss,
        "lr": plan.train.optimizer.lr * factor,
        "grad_norm": grad_norm,
        "tokens_per_s": rate,
    }
    if rate is not None and plan.peak_flops:
        n_computed = plan.n_computed(metrics.n_targets, metrics.n_examples)
        flops_per_target = plan.flops_per_token * n_computed / metrics.n_targets
        row["mfu"] = mfu(rate, flops_per_target, plan.peak_flops)
    if found.aux_loss is not None:
        row["aux_loss"] = found.aux_loss
    row.update(found.figures)
    if found.layers:
        row["layers"] = found.layers
    recorder.metrics(row)


def _evaluate(
    evaluate: Callable[[], Row], recorder: Recorder, plan: Plan, progress: Progress
) -> tuple[Progress, bool]:
    """Measure, write down, and update the counters; also whether this is the best so far."""
    row = evaluate()
    loss = row["loss_nats"]
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"step {progress.step}: the validation loss is {loss}.")
    recorder.evaluation(
        {
            "step": progress.step,
            "tokens": progress.tokens,
            "elapsed_s": round(progress.elapsed_s, 3),
            **row,
        }
    )
    best = progress.best_loss_nats
    stopping = plan.train.early_stopping
    is_best = best is None or loss < best
    has_improved = best is None or loss < best - (stopping.min_delta if stopping else 0.0)
    progress = replace(
        progress,
        best_loss_nats=loss if is_best else best,
        best_step=progress.step if is_best else progress.best_step,
        evals_without_improvement=0 if has_improved else progress.evals_without_improvement + 1,
        last_eval_step=progress.step,
    )
    return progress, is_best


def _has_stalled(plan: Plan, progress: Progress) -> bool:
    stopping = plan.train.early_stopping
    return stopping is not None and progress.evals_without_improvement >= stopping.patience
