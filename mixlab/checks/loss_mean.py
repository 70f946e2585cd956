"""Is the loss a mean over target tokens, however a batch is cut?

A mean over micro-batches of their means weighs a token by how full its micro-batch is: the same
tokens then train another model when the memory of the machine is smaller.
"""

import torch
from torch import Tensor

from mixlab.checks.base import CheckContext, Finding, next_token_batch, random_tokens
from mixlab.data.batch import IGNORE, Batch

LENGTH = 24
SPLITS = ((4,), (1, 3), (2, 2))
"""Rows of each micro-batch."""
TOLERANCE = 2.0**-26
"""Of the gradient's norm, in float64; the same sums in another order differ by far less. A mean of
means differs by about the spread of the target counts, here a factor of 2 and more."""


def check_loss_mean(context: CheckContext) -> Finding:
    """The gradient of rows with unequal numbers of targets, cut in several ways.

    In evaluation mode: a balance loss of experts is a statement about one micro-batch and may
    differ.
    """
    model = context.probe()
    batch = next_token_batch(random_tokens(model, sum(SPLITS[0]), LENGTH + 1, seed=50))
    for row in range(batch.targets.shape[0]):
        batch.targets[row, : row * LENGTH // 5] = IGNORE
    whole, *others = [_gradient(context, model, batch, rows) for rows in SPLITS]
    worst = max((other - whole).norm().item() for other in others) / whole.norm().item()
    figures = {"difference": worst}
    measured = f"cutting the same batch otherwise moves the gradient by {worst:.1e} of its size"
    if worst <= TOLERANCE:
        meaning = "Every token counts alike, and micro_batch_size is a matter of memory only."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Tokens of a micro-batch with fewer targets count more: what is learned depends on "
        "micro_batch_size. Divide the summed nats by the targets of the whole update."
    )
    return Finding("fail", measured, meaning, figures)


def _gradient(
    context: CheckContext, model: torch.nn.Module, batch: Batch, rows: tuple[int, ...]
) -> Tensor:
    model.zero_grad(set_to_none=True)
    context.accumulate(model, batch.split(rows))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
