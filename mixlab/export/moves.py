"""How single tensors go from our names to stock names, and back.

A move takes some of our tensors and gives some stock tensors. Most only rename. A move without a
way back writes our model in the words of a richer stock one, such as attention without a gate as
attention whose gate stands still; what is read back from a stock folder is always taken literally.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Change = Callable[..., tuple[Tensor, ...]]


class MoveError(ValueError):
    """A stock tensor has a value that our model has no place for; the text names it."""


@dataclass(frozen=True)
class Move:
    """Some tensors of ours and what they are in the stock model."""

    ours: tuple[str, ...]
    stock: tuple[str, ...]
    out: Change
    back: Change | None = None


def to_stock(tensors: Mapping[str, Tensor], moves: Iterable[Move]) -> Tensors:
    """All our tensors by their stock names. Works on the meta device too, for the shapes alone."""
    left, out = set(tensors), {}
    for move in moves:
        out.update(zip(move.stock, move.out(*(tensors[n] for n in move.ours)), strict=True))
        left -= set(move.ours)
    assert not left, f"no move takes {sorted(left)}"
    return out


def to_ours(tensors: Mapping[str, Tensor], moves: Iterable[Move]) -> Tensors:
    """All stock tensors by our names.

    Raises:
        MoveError: a stock tensor holds what our model cannot.
    """
    out: Tensors = {}
    for move in moves:
        assert move.back is not None, f"{move.stock} is written, never read"
        out.update(zip(move.ours, move.back(*(tensors[n] for n in move.stock)), strict=True))
    return out


# --- kinds of move ----------------------------------------------------------------------------


def same(ours: str, stock: str) -> Move:
    """The tensor as it is, under another name."""
    return Move((ours,), (stock,), lambda t: (t,), lambda t: (t,))


def offset(ours: str, stock: str) -> Move:
    """The weight of a norm that multiplies by 1 + w.

    1 + (w - 1) is w again from 0.5 to 2, and beyond 2; below 0.5 it is w rounded to 2^-25.
    """
    return Move((ours,), (stock,), lambda w: (w - 1,), lambda w: (w + 1,))


def scaled(ours: str, stock: str, factor: float) -> Move:
    """The tensor times a number; not read back."""
    return Move((ours,), (stock,), lambda t: (t * factor,))


def constant(stock: str, shape: tuple[int, ...], value: float = 0.0) -> Move:
    """A stock tensor without a counterpart, which must hold `value` throughout.

    The device is that of the call; `to_stock` on the meta device needs the shape alone.
    """

    def check(tensor: Tensor) -> tuple[Tensor, ...]:
        if not bool((tensor == value).all()):
            raise MoveError(
                f"{stock} is not {value:g} throughout: expected that, since a mixlab model has no "
                "such tensor"
            )
        return ()

    return Move((), (stock,), lambda: (torch.full(shape, value),), check)


EXPERT_LEAVES = ("gate_proj", "up_proj", "down_proj")


def experts(
    ours: str, stock: str, n: int, leaves: tuple[str, str, str] = EXPERT_LEAVES
) -> list[Move]:
    """Stacked experts (E, 2F, D) and (E, D, F) as three matrices for each expert."""

    def split_up(t: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for e in range(n) for part in t[e].chunk(2, dim=0))

    def join_up(*parts: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return (torch.stack([torch.cat(pair) for pair in pairs]),)

    up = [f"{stock}.{e}.{leaf}.weight" for e in range(n) for leaf in leaves[:2]]
    down = [f"{stock}.{e}.{leaves[2]}.weight" for e in range(n)]
    return [
        Move((f"{ours}.gate_up_proj",), tuple(up), split_up, join_up),
        Move(
            (f"{ours}.down_proj",), tuple(down),
            lambda t: tuple(t.unbind(0)), lambda *parts: (torch.stack(parts),),
        ),
    ]  # fmt: skip
