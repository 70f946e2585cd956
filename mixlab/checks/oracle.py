"""Cross-entropy in NumPy float64, written without the lab's own loss."""

import numpy as np
import torch
from torch import Tensor, nn

from mixlab.data.batch import IGNORE
from mixlab.ops.packing import Packing


@torch.no_grad()
def token_nats(
    model: nn.Module, tokens: Tensor, targets: Tensor, segments: Tensor | None = None
) -> np.ndarray:
    """(B, T) nats of every target from the trunk's output on; NaN where there is no target."""
    packing = None if segments is None else Packing(segments)
    h = model.trunk(tokens, None, packing).h.double().cpu().numpy()
    weight = model.head_weight.double().cpu().numpy()
    logits = h @ weight.T  # (B, T, vocab)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(logits - top).sum(axis=-1))
    labels = targets.cpu().numpy()
    picked = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return np.where(labels == IGNORE, np.nan, log_sum - picked)
