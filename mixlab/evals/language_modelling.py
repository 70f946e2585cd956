"""Validation loss and its relatives: the one place where a reported loss comes from."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixlab.data.batch import Batch
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.packing import Packing
from mixlab.parallel import ALONE, World


class EvalMetrics(NamedTuple):
    """Means over the target tokens of a fixed set."""

    loss_nats: float
    accuracy: float  # share of targets that had the highest logit
    perplexity: float  # exp(loss_nats)
    bits_per_byte: float  # nats of all targets, as bits, over the bytes of text they stand for
    n_tokens: int


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    *,
    compute_dtype: torch.dtype | None = None,
    loops: Loops | None = None,
    world: World = ALONE,
) -> EvalMetrics:
    """Score every target of `batches`, and of those that the other ranks have.

    The trunk runs in the precision that the model trains in; head, softmax and sums are float32
    and float64. `token_bytes` (vocab,) holds the bytes of text behind each token, 0 for EOS.
    Dropout is off, and the model's mode is put back afterwards. `loops` is how often a looped model
    loops; absent, every token takes the depth that it was trained for.
    """
    device = model.embed_tokens.weight.device
    bytes_of = torch.as_tensor(token_bytes, dtype=torch.float64, device=device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # nats, hits, bytes, targets
    with evaluating(model):
        n_rows = 0
        for batch in batches:
            n_rows = n_rows or len(batch.tokens)
            on_device = _on_device(batch, n_rows, device)
            sums += _score(model, *on_device, bytes_of, compute_dtype, loops)
    nats, hits, n_bytes, n_targets = world.add_up(sums).tolist()
    loss = nats / n_targets
    return EvalMetrics(
        loss_nats=loss,
        accuracy=hits / n_targets,
        perplexity=math.exp(min(loss, 700.0)),  # beyond that float64 overflows
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else math.nan,
        n_tokens=round(n_targets),
    )


def _on_device(batch: Batch, n_rows: int, device: torch.device) -> tuple[Batch, Packing]:
    """The batch and its packing; for a GPU without waiting, and always of the same shape, since
    another one would be compiled for."""
    if device.type != "cuda":
        return batch.to(device), Packing(batch.segments, batch.prefix).to(device)
    batch = batch.padded(n_rows)
    packing = Packing(batch.segments, batch.prefix).pinned()
    return batch.pinned().to(device), packing.to(device)


def _score(
    model: LanguageModel,
    batch: Batch,
    packing: Packing,
    bytes_of: Tensor,
    compute_dtype: torch.dtype | None,
    loops: Loops | None,
) -> Tensor:
    dtype = compute_dtype or torch.bfloat16
    with torch.autocast(batch.tokens.device.type, dtype=dtype, enabled=compute_dtype is not None):
        arguments = () if loops is None else (loops,)
        h = model.trunk(batch.tokens, None, packing, *arguments).h
    targets = batch.targets.flatten()
    scores = score_tokens(h.flatten(0, 1), model.head_weight, targets, compute_dtype=compute_dtype)
    is_target = targets != IGNORE
    # Not by a mask of rows, whose length a GPU would have to be waited for.
    n_bytes = torch.where(is_target, bytes_of[targets.clamp(min=0)], 0).sum()
    return torch.stack(
        [
            scores.nats.double().sum(),
            scores.is_correct.double().sum(),
            n_bytes,
            is_target.double().sum(),
        ]
    )
