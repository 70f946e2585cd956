"""The sequences of one decoding step, and what all layers derive from their lengths.

Shapes: B rows (one sequence each), S slots of a cache, R rotary channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.ops.rope import rope_table


class Rotation(NamedTuple):
    """How far each row turns: x * cos + x.roll(R / 2) * sin over the R channels of a head."""

    cos: Tensor  # (B, 1, R), or (1, 1, R) for all rows
    sin: Tensor  # likewise, negative in the first half


class RopeTables:
    """Angles of every position, made once per kind and grown when texts get longer."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, float, torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, rows: "Rows", dim: int, theta: float, dtype: torch.dtype) -> Rotation:
        """For the next token of every row."""
        n_seen, position, most = rows.n_seen, rows.position, rows.n_keys - 1
        key = (dim, theta, dtype)
        if key not in self._tables or len(self._tables[key][0]) <= most:
            positions = torch.arange(max(256, 2 * most), device=n_seen.device)
            cos, sin = rope_table(positions, dim, theta, dtype)
            self._tables[key] = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        cos, sin = self._tables[key]
        if position is not None:
            return Rotation(cos[position, None, None], sin[position, None, None])
        return Rotation(cos[n_seen][:, None], sin[n_seen][:, None])


class Rows:
    """B sequences that each get one more token.

    Attributes:
        n_seen: (B,) int64, tokens before this one; also where it belongs in a cache.
        n_keys: slots of an unbounded cache that hold all rows' tokens, this one included.
        position: the one value of `n_seen` where all rows are equally long, else None.
    """

    def __init__(
        self, n_seen: Tensor, n_keys: int, position: int | None, tables: RopeTables
    ) -> None:
        self.n_seen, self.n_keys, self.position = n_seen, n_keys, position
        self._index: Tensor | None = None
        self._tables = tables
        self._rotations: dict[tuple[int, float], Rotation] = {}
        self._masks: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.n_seen)

    @property
    def index(self) -> Tensor:
        """(B,) the rows' numbers."""
        if self._index is None:
            self._index = torch.arange(len(self.n_seen), device=self.n_seen.device)
        return self._index

    def rotation(self, dim: int, theta: float, dtype: torch.dtype) -> Rotation:
        """Angles of the current tokens; `dtype` is float32 or wider."""
        if (dim, theta) not in self._rotations:
            self._rotations[dim, theta] = self._tables.at(self, dim, theta, dtype)
        return self._rotations[dim, theta]

    def mask(self, n_slots: int) -> Tensor | None:
        """(B, 1, 1, S) zero where a row has a token among the first S slots, else -inf.

        Slots are filled in order, and begin anew where a ring is full. None: all are filled.
        """
        if self.position is not None and self.position + 1 >= n_slots:
            return None
        if n_slots not in self._masks:
            slots = torch.arange(n_slots, device=self.n_seen.device)
            is_empty = slots > self.n_seen[:, None]
            mask = torch.zeros(is_empty.shape, device=slots.device)
            self._masks[n_slots] = mask.masked_fill_(is_empty, -torch.inf)[:, None, None]
        return self._masks[n_slots]


def turn(x: Tensor, rotation: Rotation) -> None:
    """Turn the first R channels of (B, H, K) in place, channel i with channel i + R / 2."""
    dim = rotation.cos.shape[-1]
    turned = x[..., :dim]
    swapped = turned.roll(dim // 2, -1)
    if turned.dtype == rotation.cos.dtype:
        turned.mul_(rotation.cos).addcmul_(swapped, rotation.sin)
    else:
        turned.copy_(turned * rotation.cos + swapped * rotation.sin)
