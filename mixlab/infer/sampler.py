"""From logits to the next token."""

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from mixlab.core.config import Config

COLDEST = 1e-300
"""Temperatures below draw as this one does; the reciprocal of a smaller one may overflow."""


class SamplingConfig(Config):
    """How the next token is drawn; the filters apply in the order written here."""

    temperature: NonNegativeFloat = 0.8
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: PositiveInt | None = None
    """Draw from this many likeliest tokens; absent: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the smallest set of likeliest tokens that holds this probability; absent: all."""


def sample(logits: Tensor, cfg: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draw one token per row: (B, vocab) logits to (B,) int64.

    Ties at the edge of top_k are all kept; the likeliest token always survives.
    """
    if cfg.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.to(torch.float64)
    # From the row's maximum down, so that a tiny temperature gives -inf and never inf - inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(cfg.temperature, COLDEST)
    if cfg.top_k is not None and cfg.top_k < logits.shape[-1]:
        floor = logits.topk(cfg.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probs = logits.softmax(dim=-1)
    if cfg.top_p is not None and cfg.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier tokens
        probs = probs.scatter(-1, order, ordered.masked_fill(before >= cfg.top_p, 0.0))
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)
