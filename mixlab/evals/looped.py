"""A looped model's loss at every depth, and what leaving early costs and saves."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.data.batch import Batch
from mixlab.nn.language_model import LanguageModel, Trunk
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.packing import Packing


class AtDepth(NamedTuple):
    """Means over the targets of a fixed set, every token taking this many steps."""

    steps: int
    loss_nats: float
    accuracy: float


class WithExits(NamedTuple):
    """The same with tokens that leave by the model's rule."""

    exit_threshold: float
    loss_nats: float
    mean_steps: float  # over all tokens
    max_steps: int


def loss_by_depth(
    model: LanguageModel,
    batches: Iterable[Batch],
    max_steps: int,
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[AtDepth]:
    """The loss at 1 to `max_steps` steps, in one pass that reads every exit."""
    loops = Loops(max_steps, every_exit=True)
    sums = torch.zeros(max_steps, 2, dtype=torch.float64)
    n_targets = 0

    def add(out: Trunk, targets: Tensor) -> None:
        nonlocal n_targets
        assert out.loops is not None
        n_targets += int((targets != IGNORE).sum())
        for found in out.loops.exits:
            scores = score_tokens(found.h.flatten(0, 1), model.head_weight, targets)
            hits = (scores.is_correct & (targets != IGNORE)).double().sum()
            sums[found.step - 1] += torch.stack([scores.nats.double().sum(), hits]).cpu()

    _run(model, batches, loops, compute_dtype, add)
    means = (sums / n_targets).tolist()
    return [AtDepth(i + 1, nats, hits) for i, (nats, hits) in enumerate(means)]


def loss_with_exits(
    model: LanguageModel,
    batches: Sequence[Batch],
    thresholds: Sequence[float],
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[WithExits]:
    """Loss and steps at each threshold of the model's exit rule, at its trained depth."""
    assert model.cfg.recursion is not None
    n_steps, found = model.cfg.recursion.depth.trained_steps, []
    for threshold in thresholds:
        sums = torch.zeros(3, dtype=torch.float64)  # nats, targets, steps of all tokens
        n_tokens = 0

        def add(out: Trunk, targets: Tensor, sums: Tensor = sums) -> None:
            nonlocal n_tokens
            assert out.loops is not None and out.loops.n_steps is not None
            nats = score_tokens(out.h.flatten(0, 1), model.head_weight, targets).nats
            taken = out.loops.n_steps.double().sum()
            is_target = (targets != IGNORE).double().sum()
            sums += torch.stack([nats.double().sum(), is_target, taken]).cpu()
            n_tokens += targets.numel()

        loops = Loops(may_exit=True, exit_threshold=threshold)
        _run(model, batches, loops, compute_dtype, add)
        nats, n_targets, taken = sums.tolist()
        found.append(WithExits(threshold, nats / n_targets, taken / n_tokens, n_steps))
    return found


@torch.no_grad()
def _run(
    model: LanguageModel,
    batches: Iterable[Batch],
    loops: Loops,
    compute_dtype: torch.dtype | None,
    add: Callable[[Trunk, Tensor], None],
) -> None:
    """Give each batch's output and targets to `add`; without dropout, mode put back afterwards."""
    device = model.embed_tokens.weight.device
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device)
            with torch.autocast(
                device.type, dtype=compute_dtype or torch.bfloat16,
                enabled=compute_dtype is not None,
            ):  # fmt: skip
                out = model.trunk(batch.tokens, None, Packing(batch.segments, batch.prefix), loops)
            add(out, batch.targets.flatten())
    finally:
        model.train(was_training)
