"""What an update learns from: the part of training that differs between kinds of model.

The loop owns length, learning rate, evaluation and checkpoints; an objective owns the examples
and the loss. A new way of training is one more objective, never one more loop.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from mixlab.parallel.shards import total_norm
from mixlab.training import phases
from mixlab.training.optimizers.base import Optimizer


class StepMetrics(NamedTuple):
    """Figures of one update, still on the device: reading them waits for it."""

    loss_nats: Tensor  # mean over all targets, without auxiliary losses
    grad_norm: Tensor  # L2 over all parameters, before clipping
    n_targets: int  # targets of this update
    aux_loss: Tensor | None  # mean over targets, weighted as it was added
    layers: dict[str, dict[str, Tensor]]  # figures of channel mixers, of the last micro-batch
    n_examples: int = 0  # training examples drawn
    figures: Mapping[str, Tensor] = {}  # further scalars for metrics.jsonl, by name


class Objective(Protocol):
    """One kind of training."""

    model: nn.Module
    """What is trained."""

    def accumulate(self, position: int) -> StepMetrics:
        """Draw the examples from `position` on and add up the gradients of their mean loss."""
        ...

    def after_update(self) -> None:
        """Called once after every optimizer update."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """What lives from one update to the next besides model and optimizer, for checkpoints."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` gave, bit for bit."""
        ...

    def close(self) -> None:
        """End what runs in the background; a later `accumulate` starts it again."""
        ...


def update(
    objective: Objective,
    optimizer: Optimizer | Any,
    position: int,
    *,
    lr_factor: float,
    max_grad_norm: float | None,
) -> StepMetrics:
    """One optimizer update from the examples at `position`. Nothing here waits for the device."""
    phases.begin("data")
    metrics = objective.accumulate(position)
    phases.begin("optimizer")
    clip = None if max_grad_norm is None else clip_factor(metrics.grad_norm, max_grad_norm)
    optimizer.step(lr_factor, clip)
    objective.after_update()
    optimizer.zero_grad()
    phases.begin("end")
    return metrics


def total_grad_norm(model: nn.Module) -> Tensor:
    """L2 norm of all gradients together, those that other ranks hold included."""
    return total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of L2 norm `norm` are multiplied by, so that it becomes at most `max_norm`."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
