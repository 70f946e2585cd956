"""Losses that weigh tokens unequally or ask for the wrong one, and an evaluator that rounds."""

import torch
import torch.nn.functional as F

from mixlab.data.batch import Batch
from mixlab.evals.language_modelling import EvalMetrics
from mixlab.ops.packing import Packing
from mixlab.training.language_modelling import accumulate_gradients


def mean_of_means(model, micro_batches, **settings):
    """Each micro-batch's mean, averaged."""
    for batch in micro_batches:
        out = accumulate_gradients(model, [batch], **settings)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= len(micro_batches)
    return out


def unshifted(model, micro_batches, **settings):
    """The labels are the inputs, and nobody shifts them."""
    same = [Batch(b.tokens, torch.where(b.targets < 0, b.targets, b.tokens), b.segments)
            for b in micro_batches]  # fmt: skip
    return accumulate_gradients(model, same, **settings)


def shifted_twice(model, micro_batches, **settings):
    """The loader shifts, and the loss shifts again."""
    later = [Batch(b.tokens[:, :-1], b.targets[:, 1:], b.segments[:, :-1]) for b in micro_batches]
    return accumulate_gradients(model, later, **settings)


class UnshiftedLoader:
    """A loader whose targets are its tokens."""

    def __init__(self, loader):
        self._loader = loader

    def batch(self, position, n):
        batch = self._loader.batch(position, n)
        return batch._replace(targets=batch.tokens)


@torch.no_grad()
def bfloat16_evaluator(model, batches, token_bytes):
    """Cross-entropy in the dtype that the kernels like best."""
    total, n = 0.0, 0
    for batch in batches:
        h = model.trunk(batch.tokens, None, Packing(batch.segments)).h
        logits = (h @ model.head_weight.T).bfloat16().flatten(0, 1)
        total += F.cross_entropy(logits, batch.targets.flatten()).item()
        n += 1
    return EvalMetrics(total / n, 0.0, 0.0, 0.0, 1)


def inflated_evaluator(model, batches, token_bytes):
    """Multiplied by T and divided by T - 1, as one of the originals reported it."""
    batches = list(batches)
    from mixlab.evals.language_modelling import evaluate

    length = batches[0].tokens.shape[1]
    metrics = evaluate(model, batches, token_bytes)
    return metrics._replace(loss_nats=metrics.loss_nats * length / (length - 1))
