"""Cross-entropy in NumPy float64, written without the lab's own loss."""

import numpy as np
import torch
from torch import Tensor, nn

from mixlab.data.batch import IGNORE
from mixlab.ops.packing import Packing

CHUNK_LOGITS = 2**22
"""Logits that are held at once: 32 MB."""


@torch.no_grad()
def token_nats(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    segments: Tensor | None = None,
    prefix: Tensor | None = None,
) -> np.ndarray:
    """(B, T) nats of every target from the trunk's output on; NaN where there is no target."""
    packing = None if segments is None else Packing(segments, prefix)
    h = model.trunk(tokens, None, packing).h.double().cpu().numpy()
    weight = model.head_weight.double().cpu().numpy()
    labels = targets.cpu().numpy()
    rows, row_labels = h.reshape(-1, h.shape[-1]), labels.ravel()
    size = max(1, CHUNK_LOGITS // weight.shape[0])
    nats = [
        _row_nats(rows[i : i + size] @ weight.T, row_labels[i : i + size])
        for i in range(0, len(rows), size)
    ]
    return np.concatenate(nats).reshape(labels.shape)


def _row_nats(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    top = logits.max(axis=-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
    picked = logits[np.arange(len(labels)), np.maximum(labels, 0)]
    return np.where(labels == IGNORE, np.nan, log_sum - picked)
