"""The sequences of one decoding step, and what all layers derive from their lengths.

Shapes: B rows (one sequence each), S slots of a cache, R rotary channels.
"""

import torch
from torch import Tensor

from mixlab.ops.rope import rope_table


class RopeTables:
    """Angles of every position, made once per kind and grown when texts get longer."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, float, torch.dtype], Tensor] = {}  # (positions, R / 2)

    def at(self, rows: "Rows", dim: int, theta: float, dtype: torch.dtype) -> Tensor:
        """For the next token of every row, what `turn` takes."""
        n_seen, position, most = rows.n_seen, rows.position, rows.n_keys - 1
        key = (dim, theta, dtype)
        if key not in self._tables or len(self._tables[key]) <= most:
            positions = torch.arange(max(256, 2 * most), device=n_seen.device)
            self._tables[key] = torch.complex(*rope_table(positions, dim, theta, dtype))
        table = self._tables[key]
        return table[position] if position is not None else table[n_seen][:, None]


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
        self._n_rows = n_seen.shape[0]
        self._index: Tensor | None = None
        self._tables = tables
        self._rotations: dict[tuple[int, float], Tensor] = {}
        self._masks: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._n_rows

    @property
    def index(self) -> Tensor:
        """(B,) the rows' numbers."""
        if self._index is None:
            self._index = torch.arange(self._n_rows, device=self.n_seen.device)
        return self._index

    def rotation(self, dim: int, theta: float, dtype: torch.dtype) -> Tensor:
        """Angles of the current tokens, (R / 2,) or (B, 1, R / 2) complex; `dtype` is float32 or
        wider."""
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


def pair_order(n: int) -> Tensor:
    """Channels that turn as (i, i + n / 2) in the order in which they are neighbours."""
    return torch.arange(n).view(2, -1).T.flatten()


def turn(x: Tensor, rotation: Tensor) -> None:
    """Turn the first R channels of (B, H, K) in place, channel 2i with channel 2i + 1.

    Two neighbours are a complex number, and turning is one product with exp(i angle).
    """
    n_pairs = rotation.shape[-1]
    turned = x if x.shape[-1] == 2 * n_pairs else x[..., : 2 * n_pairs]
    pairs = turned.view(*x.shape[:2], n_pairs, 2)
    if x.dtype == rotation.dtype.to_real():
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        wide = torch.view_as_complex(pairs.to(rotation.dtype.to_real()))
        pairs.copy_(torch.view_as_real(wide.mul_(rotation)))
