"""The figures of an update on their way from the device to the log, in one transfer.

Reading a tensor of an accelerator waits for it, and costs some ten microseconds each time besides.
So all figures of an update are packed behind each other on the device, sent to page-locked memory
without waiting, and read one update later, when they have long arrived.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixlab.training.objective import StepMetrics


class Figures(NamedTuple):
    """What `StepMetrics` holds in tensors, as plain numbers."""

    loss_nats: float
    grad_norm: float
    aux_loss: float | None
    figures: dict[str, float]
    layers: dict[str, dict[str, Any]]  # a number or a list each


class Reading:
    """Begins to fetch the figures of an update; `figures` waits until they are here."""

    def __init__(self, metrics: StepMetrics) -> None:
        self._tensors = [
            metrics.loss_nats,
            metrics.grad_norm,
            *([] if metrics.aux_loss is None else [metrics.aux_loss]),
            *metrics.figures.values(),
            *(value for layer in metrics.layers.values() for value in layer.values()),
        ]
        self._has_aux_loss = metrics.aux_loss is not None
        self._names = list(metrics.figures)
        self._layers = {layer: list(values) for layer, values in metrics.layers.items()}
        self._parcels = _sent(self._tensors)

    def figures(self) -> Figures:
        """The numbers, exactly as the tensors hold them."""
        for parcel in self._parcels:
            parcel.arrived.synchronize()
            values = iter(parcel.host.split(parcel.sizes))
            for i in parcel.places:
                self._tensors[i] = next(values).view(self._tensors[i].shape)
        values = iter([tensor.tolist() for tensor in self._tensors])
        return Figures(
            next(values),
            next(values),
            next(values) if self._has_aux_loss else None,
            {name: float(next(values)) for name in self._names},
            {layer: {name: next(values) for name in own} for layer, own in self._layers.items()},
        )


class _Parcel(NamedTuple):
    """Tensors of one dtype, behind each other on the host."""

    host: Tensor
    places: list[int]  # of the tensors, in the reading's order
    sizes: list[int]
    arrived: torch.cuda.Event


def _sent(tensors: list[Tensor]) -> list[_Parcel]:
    """Send those that are on a GPU; others are here already."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.device.type == "cuda":
            groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    parcels = []
    for (_, dtype), places in groups.items():
        packed = torch.cat([tensors[i].detach().reshape(-1) for i in places])
        host = torch.empty(packed.shape, dtype=dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        parcels.append(_Parcel(host, places, [tensors[i].numel() for i in places], arrived))
    return parcels
