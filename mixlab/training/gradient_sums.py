"""The gradients of all ranks, added up once per update: during its last backward pass or after it.

Parameters are put into buckets in the reverse order of the model, which is about the order in which
backward reaches them. On a slow link a bucket is sent as soon as its last gradient is there, while
backward goes on. On a fast one all are sent afterwards: NCCL's kernels take multiprocessors from
matrix products that are laid out for all of them, which costs more than the exchange itself. (150M
parameters on two H200s with NVLink: 104.8 ms without exchange, 111.6 during, 109.1 to 109.5 after
backward.) Both send the same buckets, so the sums are the same.

Ours, after PyTorch's DistributedDataParallel [arXiv:2006.15704]. That one wraps `forward`, and what
is trained here is called in other ways. Sums, not means: every loss is divided by the number of
targets of all ranks beforehand.

Sharded parameters (`training/sharding.py`) are summed by FSDP itself; this takes the others.
"""

import time
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
"""Large enough for most of the speed of NVLink, small enough that the last one is soon through."""
FAST_LINK = 100e9
"""Bytes per second of gradients from which on they are sent after backward: NVLink has 200e9 to
300e9, PCI Express at most 40e9."""
ALIGNED = 64
"""Elements to whose multiples gradients begin in a bucket: kernels read many at once."""


class GradientSums:
    """Makes the gradients of `model` those of all ranks. Every rank must run the same graph."""

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        overlaps: bool | None = None,
    ) -> None:
        """`overlaps` sends during backward or not; None: as the link's speed has it."""
        self.world = world
        self._buckets: list[list[nn.Parameter]] = []
        self._missing: list[int] = []  # per bucket, gradients of this backward still to come
        self._n_sent = 0
        self._under_way: list = []
        self._is_armed = False
        self.is_separate = world.size > 1
        """Whether nothing is sent before the last backward pass has ended."""
        if world.size == 1:
            return
        self._sharded = sharded_modules(model)
        whole = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]
        self._buckets = _buckets(whole[::-1], bucket_bytes)
        if overlaps is None:
            overlaps = whole[0].device.type == "cuda" and link_speed(world, whole[0]) < FAST_LINK
        self.is_separate = not overlaps and not self._sharded
        if not overlaps:
            return
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
            self._send_rest()

    def add_up(self) -> None:
        """Sum the gradients of backward passes that ran outside `over`; for `is_separate`."""
        self._n_sent = 0
        self._send_rest()

    def _send_rest(self) -> None:
        while self._n_sent < len(self._buckets):
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
        flat, places = _laid_out(bucket)
        filled = [(p, place) for p, place in zip(bucket, places, strict=True) if p.grad is not None]
        if filled:
            torch._foreach_copy_([place for _, place in filled], [p.grad for p, _ in filled])
        for parameter, place in filled:
            parameter.grad = place
        self._under_way.append(self.world.add_up_later(flat))


def _tell(sums: "weakref.ref[GradientSums]", i: int, parameter: Tensor) -> None:
    found = sums()
    if found is not None:
        found._arrived(i)


def _laid_out(bucket: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """Zeros to send, with a place in them for the gradient of every parameter."""
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in bucket]
    flat = bucket[0].new_zeros(sum(sizes))
    rooms = zip(bucket, flat.split(sizes), strict=True)
    return flat, [room[: p.numel()].view_as(p) for p, room in rooms]


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


def link_speed(world: World, like: Tensor) -> float:
    """Bytes per second at which a bucket is summed between GPUs, as the first rank measures it."""
    bucket = like.new_zeros(BUCKET_BYTES // like.element_size())
    times = []
    for _ in range(4):
        torch.cuda.synchronize(like.device)
        start = time.perf_counter()
        world.add_up(bucket)
        torch.cuda.synchronize(like.device)
        times.append(time.perf_counter() - start)
    return float(world.tell(BUCKET_BYTES / min(times)))
