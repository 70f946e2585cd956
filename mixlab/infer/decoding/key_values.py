"""Keys and values of several sequences, in slots that stay where they are.

With a window the slots are a ring: keys come turned, so their order does not matter.
Shapes: B rows, S slots, G key-value heads, n query heads of each, K head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.infer.decoding.rows import Rows
from mixlab.infer.decoding.steps import RowCache, grown
from mixlab.nn.sequence_mixers.attention import AttentionState
from mixlab.ops.dtypes import at_least_float32

MIN_GROWTH = 64
"""Slots by which values on a CPU grow at least; see `ColumnCache`."""


class KeyValueCache(RowCache):
    """Turned keys, and values, beside each other."""

    def __init__(
        self, like: Tensor, n_heads: int, width: int, window: int | None, order: Tensor | None
    ) -> None:
        """`order` is that of a key's channels here, if not that of the mixer."""
        self.window, self._order = window, order
        self.kv = like.new_zeros(2, 0, n_heads, 0, width)  # (2, rows, G, S, K)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        n_slots = self._slots(n_tokens)
        _, rows, heads, slots, width = self.kv.shape
        if n_rows > rows or n_slots > slots:
            self.kv = grown(self.kv, (2, max(rows, n_rows), heads, max(slots, n_slots), width))

    def put(self, row: int, state: AttentionState, n_before: int) -> None:
        n_rows, n_kept = state.k.shape[:2]
        places = self._places(row, n_rows, n_kept, n_before)
        for place, kept in zip(places, self._parts(state), strict=True):  # (B, G, S, K)
            copy_heads(kept.transpose(1, 2), place)

    def room(self, row: int, n_rows: int, n_tokens: int, n_before: int) -> Tensor:
        """Where keys and values of whole prompts may be written, (2, B, G, T, K).

        `settle` then has to be told.
        """
        places = self._places(row, n_rows, self._slots(n_tokens), n_before)
        if places.shape[3] == n_tokens:
            return places
        return places.new_empty(*places.shape[:3], n_tokens, places.shape[4])

    def settle(self, kv: Tensor, row: int) -> None:
        """Keep what was written to `room`."""
        n_tokens = kv.shape[3]
        if self.window is not None and self.window < n_tokens:
            last = kv[..., n_tokens - self.window :, :].roll(n_tokens % self.window, 3)
            self.kv[:, row : row + kv.shape[1], :, : self.window] = last

    def _places(self, row: int, n_rows: int, n_kept: int, n_before: int) -> Tensor:
        """Slots (2, B, G, n_kept, K) of some rows; what others have left behind them is gone."""
        places = self.kv[:, row : row + n_rows]
        if n_before > n_kept:
            places[..., n_kept:n_before, :] = 0
        return places[..., :n_kept, :]

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        self.kv[:, target, :, :n_tokens] = self.kv[:, source, :, :n_tokens]
        self.kv[:, target, :, n_tokens:n_before] = 0

    def row_bytes(self, n_tokens: int) -> int:
        return 2 * self._slots(n_tokens) * self.kv.shape[2] * self.kv.shape[4] * self.kv.itemsize

    def add(self, kv: Tensor, rows: Rows) -> None:
        """Write the current tokens' keys and values (B, 2, G, K) to their slots."""
        if rows.position is not None:
            self.kv[:, : len(rows), :, self._slot(rows.position)] = kv.transpose(0, 1)
        else:
            self.kv[:, rows.index, :, self._slot(rows.n_seen)] = kv

    def attend(self, q: Tensor, rows: Rows) -> Tensor:
        """What queries (B, G, n, K) find in the slots of their rows, (B, G n K)."""
        n_slots = self._slots(rows.n_keys)
        k, v = self.kv[:, : len(rows), :, :n_slots].unbind()
        return attend(q, k, v, rows.mask(n_slots)).reshape(len(rows), -1)

    def _slots(self, n_tokens: int) -> int:
        return n_tokens if self.window is None else min(n_tokens, self.window)

    def _slot(self, position: int | Tensor) -> int | Tensor:
        return position if self.window is None else position % self.window

    def _parts(self, state: AttentionState) -> tuple[Tensor, Tensor]:
        """Keys and values (B, S, G, K) as they lie in the slots."""
        k, v = state.k, state.v
        if self.window is not None and state.n_seen > self.window:
            k, v = (part.roll(state.n_seen % self.window, 1) for part in (k, v))
        return k if self._order is None else k[..., self._order], v


class ColumnCache(KeyValueCache):
    """The same for a CPU: keys as rows, values as columns.

    Both products then go along rows of a matrix from one end of memory to the other, which is when
    a CPU reads fast; half as fast where values are rows too. For the rows of values to follow each
    other closely they have few slots to spare, and so are copied more often: an eighth, or 64.
    """

    def __init__(
        self, like: Tensor, n_heads: int, width: int, window: int | None, order: Tensor | None
    ) -> None:
        self.window, self._order = window, order
        self.k = like.new_zeros(0, n_heads, 0, width)  # (rows, G, S, K)
        self.v = like.new_zeros(0, n_heads, width, 0)  # (rows, G, K, S)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        n_slots = self._slots(n_tokens)
        rows, heads, slots, width = self.k.shape
        n_rows, n_slots = max(rows, n_rows), max(slots, n_slots)
        if (n_rows, n_slots) != (rows, slots):
            self.k = grown(self.k, (n_rows, heads, n_slots, width))
            self.v = grown(self.v, (n_rows, heads, width, self.v.shape[3]))

    def put(self, row: int, state: AttentionState, n_before: int) -> None:
        n_rows, n_kept = state.k.shape[:2]
        self._hold(n_kept)
        rows, (k, v) = slice(row, row + n_rows), self._parts(state)
        self.k[rows, :, :n_kept] = k.transpose(1, 2)
        self.v[rows, :, :, :n_kept] = v.permute(0, 2, 3, 1)
        if n_before > n_kept:
            self.k[rows, :, n_kept:n_before] = 0
            self.v[rows, :, :, n_kept:n_before] = 0

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        self.k[target, :, :n_tokens] = self.k[source, :, :n_tokens]
        self.k[target, :, n_tokens:n_before] = 0
        self.v[target, :, :, :n_tokens] = self.v[source, :, :, :n_tokens]
        self.v[target, :, :, n_tokens:n_before] = 0

    def row_bytes(self, n_tokens: int) -> int:
        return 2 * self._slots(n_tokens) * self.k.shape[1] * self.k.shape[3] * self.k.itemsize

    def add(self, kv: Tensor, rows: Rows) -> None:
        self._hold(self._slots(rows.n_keys))
        k, v = kv.unbind(1)
        if rows.position is not None:
            slot = self._slot(rows.position)
            self.k[: len(rows), :, slot] = k
            self.v[: len(rows), :, :, slot] = v
        else:
            slots = self._slot(rows.n_seen)
            self.k[rows.index, :, slots] = k
            self.v[rows.index, :, :, slots] = v

    def attend(self, q: Tensor, rows: Rows) -> Tensor:
        n_rows, n_heads, n_queries, width = q.shape
        n_slots = self._slots(rows.n_keys)
        k = self.k[:n_rows, :, :n_slots].flatten(0, 1)  # (B G, S, K)
        v = self.v[:n_rows, :, :, :n_slots].flatten(0, 1)  # (B G, K, S)
        scores = torch.bmm(k, q.reshape(-1, n_queries, width).mT)  # (B G, S, n)
        # One query's scores lie in a row as they are.
        scores = scores.view(-1, 1, n_slots) if n_queries == 1 else scores.mT
        mask = rows.mask(n_slots)
        if mask is not None:
            grouped = scores.unflatten(0, (n_rows, n_heads)) + mask.to(scores.dtype)
            scores = grouped.flatten(0, 1)
        o = torch.bmm(v, scores.softmax(dim=-1).mT)  # (B G, K, n)
        return o.view(n_rows, -1) if n_queries == 1 else o.mT.reshape(n_rows, -1)

    def _hold(self, n_slots: int) -> None:
        """Room for the values of so many slots."""
        rows, heads, width, slots = self.v.shape
        if n_slots > slots:
            n_slots = min(n_slots + max(MIN_GROWTH, n_slots // 8), self.k.shape[2])
            self.v = grown(self.v, (rows, heads, width, n_slots))


class PanelCache(KeyValueCache):
    """The same for the kernels of a CPU: values slot by slot, keys in panels of some slots each.

    A panel holds the first channel of all its slots, then the second, and so on. Slots that a row
    does not fill are never looked at, so nothing has to be cleared.
    """

    def __init__(
        self, like: Tensor, n_heads: int, width: int, window: int | None, order: Tensor | None,
        *, panel: int,
    ) -> None:  # fmt: skip
        self.window, self._order, self._panel = window, order, panel
        self.k = like.new_zeros(0, n_heads, 0, width, panel)  # (rows, G, panels, K, panel)
        self.v = like.new_zeros(0, n_heads, 0, width)  # (rows, G, S, K)

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        rows, heads, slots, width = self.v.shape
        n_rows, n_slots = max(rows, n_rows), max(slots, self._slots(n_tokens))
        if (n_rows, n_slots) != (rows, slots):
            self.k = grown(self.k, (n_rows, heads, self._panels(n_slots), width, self._panel))
            self.v = grown(self.v, (n_rows, heads, n_slots, width))

    def put(self, row: int, state: AttentionState, n_before: int) -> None:
        n_rows, n_kept = state.k.shape[:2]
        rows, (k, v) = slice(row, row + n_rows), self._parts(state)  # (B, S, G, K)
        n_panels = self._panels(n_kept)
        k = F.pad(k, (0, 0, 0, 0, 0, n_panels * self._panel - n_kept))
        panels = k.unflatten(1, (n_panels, self._panel))  # (B, panels, panel, G, K)
        self.k[rows, :, :n_panels] = panels.permute(0, 3, 1, 4, 2)
        self.v[rows, :, :n_kept] = v.transpose(1, 2)

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        n_slots = self._slots(n_tokens)
        n_panels = self._panels(n_slots)
        self.k[target, :, :n_panels] = self.k[source, :, :n_panels]
        self.v[target, :, :n_slots] = self.v[source, :, :n_slots]

    def row_bytes(self, n_tokens: int) -> int:
        return 2 * self._slots(n_tokens) * self.v.shape[1] * self.v.shape[3] * self.v.itemsize

    def _panels(self, n_slots: int) -> int:
        return -(-n_slots // self._panel)


def copy_heads(source: Tensor, target: Tensor) -> None:
    """Copy (..., K), K numbers at a time in one order of the rest into another one."""
    if source.is_cuda and source.dtype == target.dtype:
        # A GPU copies number by number where the orders differ; so let 16 bytes be a number.
        n = 16 // source.itemsize
        if all(
            part.stride(-1) == 1
            and part.shape[-1] % n == 0
            and not any(place % n for place in (part.storage_offset(), *part.stride()[:-1]))
            for part in (source, target)
        ):
            source, target = source.view(torch.complex128), target.view(torch.complex128)
    target.copy_(source)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Every query (B, G, n, K) over all slots (B, G, S, K) that the mask (B, 1, 1, S) leaves."""
    if q.is_cuda:
        return attend_by_products(q, k, v, mask)
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same as two products, which a GPU cuts along the slots; a fused kernel gives a block to
    each head of a row, and a single query leaves most of the device without work."""
    scores = at_least_float32(q @ k.mT)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v
