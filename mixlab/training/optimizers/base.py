"""What every optimizer offers to the training loop and to checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.core.errors import CheckpointError
from mixlab.parallel.shards import own_rows, rows_for


class Optimizer(ABC):
    """Updates parameters from their gradients. Nothing in it waits for the device.

    The state is complete from the start and is addressed by parameter *name*, so that a checkpoint
    does not depend on the order in which modules were built.
    """

    kernel: str
    """What runs the update, for the record."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @abstractmethod
    def step(self, lr_factor: float, clip: Tensor | None = None) -> None:
        """One update with every learning rate at `lr_factor` times its peak.

        `clip` is a scalar on the device: all gradients are taken times it. A parameter without a
        gradient stays as it is, and so does its state.
        """

    @abstractmethod
    def state_tensors(self) -> dict[str, Tensor]:
        """The live state, "<optimizer>/<quantity>/<parameter name>" -> tensor."""

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` gave, bit for bit.

        Raises:
            CheckpointError: a key is missing or unknown, or a tensor has another shape or dtype;
                nothing is changed then.
        """
        copy_exactly(self.state_tensors(), tensors, "the optimizer state")


class OptimizerConfig(Config):
    """Base of the optimizers' settings."""

    lr: float
    """Peak learning rate."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer for these parameters, which must be on their device already."""
        raise NotImplementedError


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor | None) -> None:
    """Multiply all gradients, this rank's rows of sharded ones, by a scalar; None: leave them."""
    own = [own_rows(p.grad) for p in parameters if p.grad is not None]
    if own and factor is not None:
        torch._foreach_mul_(own, factor)


def copy_exactly(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy `given` into the tensors of `own` in place, if names, shapes and dtypes all agree.

    Where a tensor of `own` is sharded, this rank's rows of the whole one in `given` are copied.

    Raises:
        CheckpointError: they do not; the message names the key, and nothing is changed.
    """
    rule = "The checkpoint belongs to another model or other settings."
    for key in own:
        if key not in given:
            raise CheckpointError(f"{what} in the checkpoint has no {key!r}. {rule}")
    for key, tensor in given.items():
        if key not in own:
            raise CheckpointError(f"{what} in the checkpoint has an unknown {key!r}. {rule}")
        expected, got = _form(own[key]), _form(tensor)
        if got != expected:
            raise CheckpointError(f"{what}: {key!r} is {got}, expected {expected}. {rule}")
    with torch.no_grad():
        for key, tensor in given.items():
            own_rows(own[key]).copy_(rows_for(own[key], tensor))


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
