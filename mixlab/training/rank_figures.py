"""Figures of an update over the batches of all ranks."""

import torch
from torch import Tensor, nn

from mixlab.ops.dtypes import at_least_float32
from mixlab.parallel import World
from mixlab.training.objective import StepMetrics

Layers = dict[str, dict[str, Tensor]]


def over_ranks(metrics: StepMetrics, world: World) -> StepMetrics:
    """The figures of the whole batch, where every rank has the sums over its share of the targets.

    Figures of layers are means over the ranks, whose shares are equally large; what is counted from
    the experts' load is counted again from the load of all.
    """
    if world.size == 1:
        return metrics
    sums = [metrics.loss_nats, *([] if metrics.aux_loss is None else [metrics.aux_loss])]
    sums += metrics.figures.values()
    layers = [value for figures in metrics.layers.values() for value in figures.values()]
    pieces = [*sums, *(value / world.size for value in layers)]
    sizes = [piece.numel() for piece in pieces]
    wide = at_least_float32(metrics.loss_nats[None][:0]).dtype
    packed = torch.cat([piece.detach().to(wide).flatten() for piece in pieces])
    parts = iter(world.add_up(packed).split(sizes))

    def take(like: Tensor) -> Tensor:
        return next(parts).view(like.shape)

    return metrics._replace(
        loss_nats=take(metrics.loss_nats),
        aux_loss=None if metrics.aux_loss is None else take(metrics.aux_loss),
        figures={name: take(value) for name, value in metrics.figures.items()},
        layers={
            layer: _of_all_load({name: take(value) for name, value in figures.items()})
            for layer, figures in metrics.layers.items()
        },
    )


def _of_all_load(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's figures with those made anew that are no mean over ranks."""
    load = figures.get("expert_utilization")
    if load is None:
        return figures
    again = {"dead_experts": (load == 0).sum(), "max_load": load.max() * load.numel()}
    return {name: again.get(name, value) for name, value in figures.items()}


def add_up_expert_counts(model: nn.Module, world: World) -> None:
    """Make the tokens that experts took, by which routers rebalance, those of all ranks."""
    if world.size == 1:
        return
    counts = [b for name, b in model.named_buffers() if name.endswith("tokens_per_expert")]
    if counts:
        totals = world.add_up(torch.cat([count.flatten() for count in counts]))
        for count, total in zip(counts, totals.split([c.numel() for c in counts]), strict=True):
            count.copy_(total.view_as(count))
