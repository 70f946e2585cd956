"""One pass over each row of logits: its nats, and the gradient in its place; or its scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8


def nats_to_gradient(logits: Tensor, targets: Tensor, nats: Tensor, wants_gradient: bool) -> None:
    """Fill `nats` (N,); with `wants_gradient`, overwrite logits (N, V) by softmax - onehot.

    Rows whose target is negative have neither nats nor gradient.
    """
    _launch(_cross_entropy_nats, logits, targets, nats, WANTS_GRADIENT=wants_gradient)


def score(logits: Tensor, targets: Tensor, nats: Tensor, is_correct: Tensor) -> None:
    """Fill `nats` (N,) and `is_correct` (N,) bool: no logit, or none before, is as high."""
    _launch(_cross_entropy_scores, logits, targets, nats, is_correct)


def _launch(kernel, logits: Tensor, targets: Tensor, *outputs: Tensor, **constants) -> None:
    n_rows, n_vocab = logits.shape
    assert logits.stride(1) == targets.stride(0) == 1, "rows lie in one piece"
    if n_rows == 0:
        return
    with torch.cuda.device(logits.device.index if logits.is_cuda else -1):
        kernel[(n_rows,)](
            logits, targets, *outputs, n_vocab, logits.stride(0), **constants,
            BLOCK=min(BLOCK, triton.next_power_of_2(n_vocab)), num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def _log_sum_exp(logits_ptr, n_vocab, BLOCK: tl.constexpr):
    highest = -float("inf")
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        # Every caller reads the row again: it should stay in the cache until then.
        here = tl.load(
            logits_ptr + v, mask=v < n_vocab, other=-float("inf"), eviction_policy="evict_last"
        ).to(tl.float32)
        now = tl.maximum(highest, tl.max(here, axis=0))
        sums = sums * tl.exp(highest - now) + tl.exp(here - now)
        highest = now
    return highest + tl.log(tl.sum(sums, axis=0))


@triton.jit
def _cross_entropy_nats(
    logits_ptr, targets_ptr, nats_ptr, n_vocab, stride,
    WANTS_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    target = tl.load(targets_ptr + row)
    is_target = target >= 0
    at_target = tl.load(logits_ptr + tl.maximum(target, 0)).to(tl.float32)
    log_total = _log_sum_exp(logits_ptr, n_vocab, BLOCK)
    tl.store(nats_ptr + row, tl.where(is_target, log_total - at_target, 0.0))
    if WANTS_GRADIENT:
        for start in range(0, n_vocab, BLOCK):
            v = start + tl.arange(0, BLOCK)
            here = tl.load(
                logits_ptr + v, mask=v < n_vocab, other=0.0, eviction_policy="evict_first"
            ).to(tl.float32)
            gradient = tl.exp(here - log_total) - tl.where(v == target, 1.0, 0.0)
            gradient = tl.where(is_target, gradient, 0.0).to(logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + v, gradient, mask=v < n_vocab, eviction_policy="evict_first")


@triton.jit
def _cross_entropy_scores(
    logits_ptr, targets_ptr, nats_ptr, is_correct_ptr, n_vocab, stride, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    target = tl.load(targets_ptr + row)
    is_target = target >= 0
    at_target = tl.load(logits_ptr + tl.maximum(target, 0)).to(tl.float32)
    log_total = _log_sum_exp(logits_ptr, n_vocab, BLOCK)
    tl.store(nats_ptr + row, tl.where(is_target, log_total - at_target, 0.0))
    n_ahead = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n_vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        here = tl.load(logits_ptr + v, mask=v < n_vocab, other=-float("inf")).to(tl.float32)
        is_ahead = (here > at_target) | ((here == at_target) & (v < target))
        n_ahead += (is_ahead & (v < n_vocab)).to(tl.int32)
    is_correct = is_target & (tl.sum(n_ahead, axis=0) == 0)
    tl.store(is_correct_ptr + row, is_correct)
