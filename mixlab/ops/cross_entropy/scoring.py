"""Nats and hits of single tokens: what every reported loss is made of."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.ops.cross_entropy import chunked
from mixlab.ops.cross_entropy.gpu_chunks import chunk_rows
from mixlab.ops.cross_entropy.operator import IGNORE
from mixlab.ops.dtypes import at_least_float32

HAS_TRITON = find_spec("triton") is not None


class TokenScores(NamedTuple):
    nats: Tensor  # (N,), float32 or wider; 0 where there is no target
    is_correct: Tensor  # (N,) bool, the target had the highest logit


@torch.no_grad()
def score_tokens(
    h: Tensor, weight: Tensor, targets: Tensor, *, compute_dtype: torch.dtype | None = None
) -> TokenScores:
    """Nats and hits of every target, with logits and softmax in float32 or wider.

    `h` (N, D), `weight` (V, D), `targets` (N,). On a GPU, a half-precision `compute_dtype` gives
    the head's product to the matrix units: both factors are split into two numbers of that dtype,
    which together keep twice its digits, and their products are summed in float32.
    """
    with torch.autocast(h.device.type, enabled=False):
        if h.device.type == "cuda" and HAS_TRITON and torch.float64 not in (h.dtype, weight.dtype):
            return _on_gpu(h, weight, targets, compute_dtype)
        h, weight = at_least_float32(h), at_least_float32(weight)
        chunk = max(1, chunked.CHUNK_LOGITS // weight.shape[0])
        nats, hits = [], []
        for start in range(0, h.shape[0], chunk):
            logits = h[start : start + chunk] @ weight.T  # (chunk, V)
            target = targets[start : start + chunk]
            nats.append(F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none"))
            hits.append(logits.argmax(dim=-1) == target)
        return TokenScores(torch.cat(nats), torch.cat(hits))


def _on_gpu(
    h: Tensor, weight: Tensor, targets: Tensor, compute_dtype: torch.dtype | None
) -> TokenScores:
    """In chunks of a GPU's size; nothing waits for the device."""
    from mixlab.ops.cross_entropy.triton_kernels import score  # imports triton: GPU only

    product = _float32_product
    if compute_dtype in (torch.bfloat16, torch.float16):
        h, weight = split_factors(h, weight, compute_dtype)
        product = _half_product
    else:
        h, weight = at_least_float32(h), at_least_float32(weight)
    found = TokenScores(
        torch.empty(h.shape[0], device=h.device),
        torch.empty(h.shape[0], dtype=torch.bool, device=h.device),
    )
    chunk = chunk_rows(h.shape[0], weight.shape[0], item_bytes=4)
    targets = targets.contiguous()
    for start in range(0, h.shape[0], chunk):
        rows = slice(start, start + chunk)
        score(product(h[rows], weight), targets[rows], found.nats[rows], found.is_correct[rows])
    return found


def split_factors(h: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices in `dtype` whose product is h @ weight.T to twice the digits of `dtype`.

    Both factors are written as high + low part; the product of the low parts is left out.
    """
    (h_high, h_low), (w_high, w_low) = _high_and_low(h, dtype), _high_and_low(weight, dtype)
    pairs = [(h_high, w_high), (h_high, w_low), (h_low, w_high)]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    return torch.cat([a for a, _ in kept], dim=1), torch.cat([b for _, b in kept], dim=1)


def _high_and_low(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    high = x.to(dtype)
    return high, None if x.dtype == dtype else (x - high.to(x.dtype)).to(dtype)


def _float32_product(h: Tensor, weight: Tensor) -> Tensor:
    return h @ weight.T


def _half_product(h: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(h, weight.T, out_dtype=torch.float32)
