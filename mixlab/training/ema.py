"""An exponential moving average of the parameters, to evaluate and to publish."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixlab.parallel.shards import own_rows
from mixlab.training.optimizers.base import copy_exactly


class Ema:
    """average <- r average + (1 - r) parameter after every update, starting at the parameters.

    The rate of update `step` (from 0) is r = min(rate, (1 + step) / (10 + step)), so that the
    random initial weights are soon forgotten.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], rate: float) -> None:
        assert 0 <= rate < 1, f"rate {rate} must lie in [0, 1)"
        self._rate = rate
        self._parameters = dict(named_parameters)
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    def rate(self, step: int) -> float:
        """What update `step`, counted from 0, keeps of the average."""
        return min(self._rate, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as update `step`, counted from 0, has left them."""
        averages = [own_rows(average) for average in self._averages.values()]
        parameters = [own_rows(parameter) for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, parameters, 1 - self.rate(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards exactly its own."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._write(self._averages)
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """The live averages by parameter name."""
        return dict(self._averages)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` gave, bit for bit.

        Raises:
            CheckpointError: names, shapes or dtypes differ; nothing is changed then.
        """
        copy_exactly(self._averages, tensors, "the averaged weights")


def horizon_warning(rate: float, n_steps: int) -> str | None:
    """Why this rate is too slow for a run of this length, if it is."""
    horizon = 1 / (1 - rate)
    if horizon <= n_steps / 3:
        return None
    return (
        f"The average of the weights with rate {rate:g} looks back over about {horizon:.0f} "
        f"updates, more than a third of the run's {n_steps}: it lags behind the weights. "
        f"A rate of {max(0.0, 1 - 10 / n_steps):.3g} would look back over a tenth of the run."
    )
