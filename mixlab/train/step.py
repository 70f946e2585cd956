"""One optimizer update, from batches in hand to numbers in hand."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixlab.data.batch import Batch
from mixlab.nn.language_model import LanguageModel, Trunk
from mixlab.ops.cross_entropy import linear_cross_entropy
from mixlab.ops.packing import Packing


class StepMetrics(NamedTuple):
    """Figures of one update, still on the device: reading them waits for it."""

    loss_nats: Tensor  # mean over all target tokens, without auxiliary losses
    grad_norm: Tensor  # L2 over all parameters, before clipping
    n_targets: int  # target tokens of this update
    aux_loss: Tensor | None  # mean over tokens, weighted as it was added
    layers: dict[str, dict[str, Tensor]]  # figures of channel mixers, of the last micro-batch


def accumulate_gradients(
    model: LanguageModel,
    micro_batches: Sequence[Batch],
    *,
    compute_dtype: torch.dtype | None = None,
    trunk: Callable[..., Trunk] | None = None,
) -> StepMetrics:
    """Add the gradients of the mean loss over all target tokens of `micro_batches` (on the CPU).

    The loss is a mean over tokens, not over micro-batches, so cutting the same tokens differently
    gives the same gradient. `compute_dtype` is the dtype of matrix products (None: the
    parameters'); `trunk` stands in for `model.trunk`, such as a compiled form of it.
    """
    run_trunk = trunk or model.trunk
    device = model.embed_tokens.weight.device
    counts = [batch.n_targets() for batch in micro_batches]  # on the CPU: nobody waits
    n_targets = sum(counts)
    loss_sum = torch.zeros((), device=device)
    aux_sum: Tensor | None = None
    layers: dict[str, dict[str, Tensor]] = {}
    for batch, count in zip(micro_batches, counts, strict=True):
        batch = batch.to(device)
        with autocast(device, compute_dtype):
            out = run_trunk(batch.tokens, None, Packing(batch.segments))
        nats = linear_cross_entropy(
            out.h.flatten(0, 1),  # (B T, D)
            model.head_weight,
            batch.targets.flatten(),
            compute_dtype=compute_dtype,
        )
        loss = nats / n_targets
        if out.aux_loss is not None:
            aux = out.aux_loss * (count / n_targets)
            loss = loss + aux
            aux_sum = aux.detach() if aux_sum is None else aux_sum + aux.detach()
        loss.backward()
        loss_sum = loss_sum + nats.detach()
        layers = out.metrics
    norms = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(norms)
    return StepMetrics(loss_sum / n_targets, grad_norm, n_targets, aux_sum, layers)


def train_step(
    model: LanguageModel,
    optimizer: Any,
    micro_batches: Sequence[Batch],
    *,
    lr_factor: float,
    max_grad_norm: float | None,
    compute_dtype: torch.dtype | None = None,
    trunk: Callable[..., Trunk] | None = None,
) -> StepMetrics:
    """Update `model` once. Nothing here waits for the device."""
    metrics = accumulate_gradients(model, micro_batches, compute_dtype=compute_dtype, trunk=trunk)
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, metrics.grad_norm)
    optimizer.step(lr_factor)
    model.update_balance()
    optimizer.zero_grad()
    return metrics


def autocast(device: torch.device, compute_dtype: torch.dtype | None) -> torch.autocast:
    """Matrix products in `compute_dtype`; None leaves every dtype as it is."""
    dtype = compute_dtype or torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=compute_dtype is not None)
