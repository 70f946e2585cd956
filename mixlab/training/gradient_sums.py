"""The gradients of all ranks, added up while the backward pass still runs.

Parameters are put into buckets in the reverse order of the model, which is about the order in which
backward reaches them. As soon as the last gradient of a bucket is there, the bucket is copied
together and sent, and backward goes on; so only what is left at its end is waited for. An update of
several micro-batches sends once, during its last backward pass.

Ours, after PyTorch's DistributedDataParallel [arXiv:2006.15704]. That one wraps `forward`, and what
is trained here is called in other ways. Sums, not means: every loss is divided by the number of
targets of all ranks beforehand.

Sharded parameters (`training/sharding.py`) are summed by FSDP itself; this takes the others.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mixlab.parallel import World
from mixlab.parallel.shards import is_sharded
from mixlab.training.sharding import sharded_modules

BUCKET_BYTES = 32 * 2**20
"""Large enough for the full speed of NVLink, small enough that the last one is soon through."""


class GradientSums:
    """Makes the gradients of `model` those of all ranks. Every rank must run the same graph."""

    def __init__(self, model: nn.Module, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world = world
        self._buckets: list[list[nn.Parameter]] = []
        self._missing: list[int] = []  # per bucket, gradients of this backward still to come
        self._n_sent = 0
        self._under_way: list = []
        self._is_armed = False
        if world.size == 1:
            return
        self._sharded = sharded_modules(model)
        whole = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]
        self._buckets = _buckets(whole[::-1], bucket_bytes)
        me = weakref.ref(self)  # a parameter that held us, as we hold it, would outlive its use
        for i, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(_tell, me, i))

    @contextmanager
    def over(self, *, is_last: bool) -> Iterator[None]:
        """Around a backward pass; after the last one of an update all gradients are summed.

        On a GPU the device waits for the sums, and the host does not.
        """
        if self.world.size == 1:
            yield
            return
        for module in self._sharded:
            module.set_requires_gradient_sync(is_last, recurse=False)
        self._is_armed, self._n_sent = is_last, 0
        self._missing = [len(bucket) for bucket in self._buckets]
        yield
        self._is_armed = False
        if is_last:
            while self._n_sent < len(self._buckets):  # those that some parameter has no part in
                self._send()
            for work in self._under_way:
                work.wait()
            self._under_way.clear()

    def _arrived(self, i: int) -> None:
        if not self._is_armed:
            return
        self._missing[i] -= 1
        # In the order of the buckets, or two ranks could send different ones to each other.
        while self._n_sent < len(self._buckets) and not self._missing[self._n_sent]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._buckets[self._n_sent]
        self._n_sent += 1
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        pieces = flat.split([p.numel() for p in bucket])
        for parameter, piece in zip(bucket, pieces, strict=True):
            if parameter.grad is not None:
                parameter.grad = piece.view_as(parameter)
        self._under_way.append(self.world.add_up_later(flat))


def _tell(sums: "weakref.ref[GradientSums]", i: int, parameter: Tensor) -> None:
    found = sums()
    if found is not None:
        found._arrived(i)


def _buckets(parameters: Sequence[nn.Parameter], n_bytes: int) -> list[list[nn.Parameter]]:
    """The parameters in order, in buckets of one dtype that are filled up to `n_bytes`."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        if not buckets or size >= n_bytes or buckets[-1][0].dtype != p.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel() * p.element_size()
    return buckets
