"""AdamW for all tensors in one Triton launch, with the clipping of gradients inside.

PyTorch's fused AdamW takes several launches over lists of tensors, and clipping is a further pass
that reads and writes every gradient. Here each number is moved once: parameter and means read and
written, the gradient read, 28 bytes per parameter.

Where the tensors lie is kept in a table on the device. Only gradients move from update to update;
their addresses are sent again where they have changed.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK, WARPS = 2048, 4


class Entry(NamedTuple):
    """One parameter with its state: float32, contiguous, on one GPU, aligned to 16 bytes."""

    parameter: Tensor
    mean: Tensor  # of the gradient
    mean_square: Tensor
    n_updates: Tensor  # scalar float32
    weight_decay: float  # per unit of learning rate


class ManyTensors:
    """AdamW's update of a fixed list of parameters."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        assert all(can_take(entry.parameter) for entry in entries), "see can_take"
        self._entries = list(entries)
        device = entries[0].parameter.device
        self._table = torch.zeros(len(entries), 5, dtype=torch.int64, device=device)
        self._places: list[int] = []
        decay = [entry.weight_decay for entry in entries]
        self._decay = torch.tensor(decay, dtype=torch.float32, device=device)
        blocks = [
            (i, start)
            for i, entry in enumerate(entries)
            for start in range(0, entry.parameter.numel(), BLOCK)
        ]
        self._n_blocks = len(blocks)
        self._blocks = torch.tensor(blocks, dtype=torch.int64, device=device)  # (blocks, 2)
        self._addresses: list[int] = []
        self._gradients = torch.zeros(len(entries), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(
        self,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        clip: Tensor | None,
    ) -> None:
        """One update from the parameters' gradients, each times the scalar `clip`.

        A parameter without a gradient stays as it is, and so does its state.
        """
        parameters = [entry.parameter for entry in self._entries]
        gradients = [_readable(p.grad) for p in parameters]
        counts = [
            entry.n_updates
            for entry, gradient in zip(self._entries, gradients, strict=True)
            if gradient is not None
        ]
        if not counts:
            return
        self._send_places([p.data_ptr() for p in parameters])
        self._send_addresses([0 if g is None else g.data_ptr() for g in gradients])
        torch._foreach_add_(counts, 1.0)
        with on_device(self._table):
            adamw_many_tensors[(self._n_blocks,)](
                self._table, self._gradients, self._decay, self._blocks,
                self._decay if clip is None else clip,
                lr, 1 - betas[0], 1 - betas[1], *map(_log, betas), eps,
                CLIPS=clip is not None, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip

    def _send_places(self, places: list[int]) -> None:
        """Parameters stay where they are, unless somebody has given a model other memory."""
        if places != self._places:
            self._places = places
            rows = [[*(t.data_ptr() for t in e[:4]), e.parameter.numel()] for e in self._entries]
            _send(rows, self._table)

    def _send_addresses(self, addresses: list[int]) -> None:
        if addresses != self._addresses:
            self._addresses = addresses
            _send(addresses, self._gradients)


def _send(values: list, to: Tensor) -> None:
    """Copy numbers to the device without waiting for it."""
    sent = torch.tensor(values, dtype=to.dtype)
    to.copy_(sent.pin_memory() if to.device.type == "cuda" else sent, non_blocking=True)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launch where `tensor` is; a CPU's are for Triton's interpreter."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@lru_cache
def disagreement(device: torch.device) -> str | None:
    """Why the kernel must not be used on this device, found by running it; None: it agrees.

    A few small tensors are updated by it and by torch; the results must be equal to float32
    rounding. This waits for the device.
    """
    g = torch.Generator().manual_seed(0)
    shapes = ((300, 70), (48,), (1,), (5000,))
    lr, betas, eps = 1e-2, (0.9, 0.95), 1e-8

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=g).to(device)

    ours = [nn.Parameter(draw(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    zeros = [[torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=device)]
             for p in ours]  # fmt: skip
    stock = torch.optim.AdamW(theirs, lr=lr, betas=betas, eps=eps, weight_decay=0.1)
    clip = torch.tensor(0.7, device=device)
    try:
        kernel = ManyTensors([Entry(p, *state, 0.1) for p, state in zip(ours, zeros, strict=True)])
        for _ in range(3):
            for p, q in zip(ours, theirs, strict=True):
                p.grad = draw(tuple(p.shape))
                q.grad = p.grad * clip
            kernel.update(lr=lr, betas=betas, eps=eps, clip=clip)
            stock.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def can_take(tensor: Tensor) -> bool:
    """Whether the kernel can read and write this tensor."""
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def _readable(gradient: Tensor | None) -> Tensor | None:
    """The gradient, or a copy of it where it lies in a form that the kernel cannot read."""
    if gradient is None or can_take(gradient):
        return gradient
    return gradient.to(torch.float32).clone(memory_format=torch.contiguous_format)


def _log(beta: float) -> float:
    return math.log(beta) if beta else -1e30  # 0 ** n is 0 from the first update on


@triton.jit
def adamw_many_tensors(
    table,  # (n, 5) int64: addresses of parameter, means and count; numbers
    gradients,  # (n,) int64 addresses, 0 where there is none
    decays,  # (n,) float32
    blocks,  # (blocks, 2) int64: which tensor, from which number on
    clip,  # scalar float32, read if CLIPS
    lr,
    new1,  # 1 - beta1, which float32 could not subtract without losing digits
    new2,
    log_beta1,
    log_beta2,
    eps,
    CLIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    tensor = tl.load(blocks + 2 * block)
    start = tl.load(blocks + 2 * block + 1)
    row = table + 5 * tensor
    gradient_at = tl.load(gradients + tensor)
    p_at = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
    m_at = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 16)
    v_at = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16)
    g_at = tl.multiple_of(gradient_at.to(tl.pointer_type(tl.float32)), 16)
    n_updates = tl.load(tl.load(row + 3).to(tl.pointer_type(tl.float32)))
    n = tl.load(row + 4)

    place = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    here = (place < n) & (gradient_at != 0)
    g = tl.load(g_at + place, mask=here, other=0.0)
    p = tl.load(p_at + place, mask=here, other=0.0)
    m = tl.load(m_at + place, mask=here, other=0.0)
    v = tl.load(v_at + place, mask=here, other=0.0)
    if CLIPS:
        g = g * tl.load(clip)
    # 1 - beta ** n, without losing the digits of a beta near 1.
    count = n_updates.to(tl.float64)
    correction1 = (1.0 - tl.exp(count * log_beta1)).to(tl.float32)
    correction2 = (1.0 - tl.exp(count * log_beta2)).to(tl.float32)

    p -= lr * tl.load(decays + tensor) * p
    m += new1 * (g - m)
    v += new2 * (g * g - v)
    root = tl.sqrt(v) / tl.sqrt(correction2) + eps
    p -= (lr / correction1) * (m / root)
    tl.store(p_at + place, p, mask=here)
    tl.store(m_at + place, m, mask=here)
    tl.store(v_at + place, v, mask=here)
