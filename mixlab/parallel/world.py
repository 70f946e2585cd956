"""The processes ("ranks") that train one model together, and what they tell each other.

There are two roads. Tensors are added up where they are: on GPUs by NCCL, on the CPU by gloo.
What the *hosts* decide on, such as counts and wishes to stop, goes through gloo from CPU to CPU, so
that nobody waits for a device.

One process alone is a world of size 1, for which everything here does nothing.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_LONG = timedelta(days=30)
"""A rank that prepares data may take its time; one that dies is noticed in another way."""


class World:
    """All ranks, seen from one of them.

    Attributes:
        rank: which one this is, from 0; the first one writes, and speaks to the user.
        size: how many there are.
        local_rank: which one on this machine; it takes the GPU of that number.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        store: dist.Store | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        assert 0 <= rank < size, f"rank {rank} of {size}"
        assert size == 1 or store is not None, "several ranks meet at a store"
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store, self._n_told, self._on_leave = store, 0, on_leave

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """This rank's part of `n` items; the parts are in the order of the ranks, and equal where
        `n` is a multiple of the size."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def leave(self) -> None:
        """Part with the other ranks, once all have come here; nothing can be exchanged after it."""
        if self._on_leave is not None:
            leave, self._on_leave = self._on_leave, None
            self.totals(0)
            leave()

    # --- tensors, where they are -----------------------------------------------------------------

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_up_later(self, tensor: Tensor) -> dist.Work | None:
        """As `add_up`, but in the background until the result's `wait`, which on a GPU lets the
        device wait and not the host."""
        return dist.all_reduce(tensor, async_op=True) if self.size > 1 else None

    def all_rows(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors, of equal shape, one after the other along the first dimension."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    # --- what hosts agree on ---------------------------------------------------------------------

    def totals(self, *counts: int) -> list[int]:
        """Every count summed over the ranks."""
        if self.size == 1:
            return list(counts)
        return self.add_up(torch.tensor(counts, dtype=torch.int64)).tolist()

    def any(self, wish: bool) -> bool:
        """Whether some rank has the wish; all get the same answer."""
        return self.totals(int(wish))[0] > 0

    def tell(self, value: Any) -> Any:
        """Plain JSON data of the first rank, for all; what others pass is ignored."""
        return self.each_tells(value, only_first=True)[0]

    def each_tells(self, value: Any, *, only_first: bool = False) -> list[Any]:
        """Plain JSON data of every rank, in their order."""
        if self._store is None:
            return [value]
        self._n_told += 1
        tellers = 1 if only_first else self.size
        keys = [f"told/{self._n_told}/{rank}" for rank in range(tellers)]
        if self.rank < tellers:
            self._store.set(keys[self.rank], json.dumps(value))
        self._store.wait(keys, _LONG)
        return [json.loads(self._store.get(key)) for key in keys]

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first rank runs the block, then all others do: they find what it has prepared."""
        if not self.is_first:
            self.tell(None)
        yield
        if self.is_first:
            self.tell(None)


ALONE = World()
