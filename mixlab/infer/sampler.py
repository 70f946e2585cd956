"""From logits to the next token.

Shapes: B rows, V vocabulary, N candidates that are left, likeliest first.
"""

from typing import NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from mixlab.core.config import Config
from mixlab.ops.dtypes import at_least_float32

BLOCK = 128
"""Logits among which `likeliest` looks one by one."""
MIN_BLOCKED = 2**15
"""Logits from which on that is worth its operations."""
COLDEST = 1e-300
"""Temperatures below draw as this one does; the reciprocal of a smaller one may overflow."""


class SamplingConfig(Config):
    """How the next token is drawn; the filters apply in the order written here."""

    repetition_penalty: PositiveFloat = 1.0
    """Logits of tokens that the text has already, prompt included, are divided by this where they
    are positive and multiplied where they are negative; 1 changes nothing."""
    temperature: NonNegativeFloat = 0.8
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: PositiveInt | None = None
    """Draw from this many likeliest tokens; absent: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the smallest set of likeliest tokens that holds this probability; absent: all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest one; absent: none."""


def sample(logits: Tensor, cfg: SamplingConfig, uniform: Tensor) -> Tensor:
    """Draw one token per row: (B, V) logits and (B,) float64 from [0, 1) to (B,) int64.

    What a row gets depends on its logits and its number alone. Ties at the edge of top_k are all
    kept; the likeliest token always survives. Penalties are the matter of `penalize`.
    """
    if cfg.temperature == 0:
        return logits.argmax(dim=-1)
    kept, order = _candidates(logits, cfg)
    kept = kept.to(torch.float64)
    # From the row's maximum down, so that a tiny temperature gives -inf and never inf - inf.
    kept = (kept - kept.amax(dim=-1, keepdim=True)) / max(cfg.temperature, COLDEST)
    probs = kept.softmax(dim=-1)  # (B, N)
    if cfg.top_p is not None and cfg.top_p < 1:
        before = probs.cumsum(dim=-1) - probs  # probability of the likelier tokens
        probs = probs.masked_fill(before >= cfg.top_p, 0.0)
    if cfg.min_p:
        probs = probs.masked_fill(probs < cfg.min_p * probs[:, :1], 0.0)
    ladder = probs.cumsum(dim=-1)
    # The first rung above the number, so never a token of probability zero.
    place = torch.searchsorted(ladder, uniform[:, None] * ladder[:, -1:], right=True)
    place = place.clamp(max=probs.shape[-1] - 1)
    return place[:, 0] if order is None else order.gather(-1, place)[:, 0]


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row (B, V), and its token; of equal ones the first.

    A CPU looks for a place one number after the other, and for a maximum at many numbers at once:
    so first for the maximum of every block, and then only in the block that has it.
    """
    n_tokens = logits.shape[1]
    if logits.is_cuda or n_tokens < BLOCK or logits.numel() < MIN_BLOCKED:
        return logits.max(dim=-1)
    n_whole = n_tokens - n_tokens % BLOCK
    most = logits[:, :n_whole].unflatten(1, (-1, BLOCK)).amax(dim=-1)
    if n_whole < n_tokens:
        most = torch.cat([most, logits[:, n_whole:].amax(dim=-1, keepdim=True)], dim=1)
    values, block = most.max(dim=-1)
    tokens = (block * BLOCK)[:, None] + torch.arange(BLOCK)
    inside = logits.gather(1, tokens.clamp_(max=n_tokens - 1)).argmax(dim=-1, keepdim=True)
    return values, tokens.gather(1, inside)[:, 0]


def _candidates(logits: Tensor, cfg: SamplingConfig) -> tuple[Tensor, Tensor | None]:
    """(B, N) logits, likeliest first, with their tokens; or all as they are, and None."""
    if cfg.top_k is not None and cfg.top_k < logits.shape[-1]:
        values, order = logits.topk(cfg.top_k, dim=-1)
        floor = values[:, -1:]
        n_most = int((logits >= floor).sum(dim=-1).max())
        if n_most > cfg.top_k:
            values, order = logits.topk(n_most, dim=-1)
            values = values.masked_fill(values < floor, -torch.inf)
        return values, order
    if cfg.min_p or (cfg.top_p is not None and cfg.top_p < 1):
        return logits.sort(dim=-1, descending=True)
    return logits, None


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> None:
    """Make the tokens `seen` (any length, repeats allowed) less likely in one row (V,), in place.

    Source: CTRL [arXiv:1909.05858], section 4.1; the sign rule is that of `transformers`.
    """
    here = logits[seen]
    logits[seen] = torch.where(here > 0, here / penalty, here * penalty)


class TokenLogprobs(NamedTuple):
    """What the model itself thought, before temperature and filters; in nats."""

    logprob: float
    """Of the drawn token."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with theirs, likeliest first."""


def logprobs(logits: Tensor, token: int, n_top: int) -> TokenLogprobs:
    """Of one row (V,) of logits and the token that was drawn from it."""
    nats = at_least_float32(logits).log_softmax(dim=-1)
    values, ids = nats.topk(min(n_top, len(nats)))
    return TokenLogprobs(float(nats[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
