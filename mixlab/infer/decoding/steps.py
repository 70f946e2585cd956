"""The contract of decoding parts: a step for a mixer's weights, a cache for its state.

A step is made once from a mixer and the norm before it; it holds the weights in the form and dtype
in which they are multiplied. A cache belongs to one application of a mixer (a looped model applies
one mixer several times) and holds a state for each of several sequences: its rows. Rows are the
first B of the cache; whoever owns the cache moves a row where another one has ended.
Shapes: B rows, D d_model.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixlab.infer.decoding.product import Product
from mixlab.infer.decoding.rows import Rows
from mixlab.nn.norm import RMSNorm
from mixlab.nn.sequence_mixers.base import SequenceMixer
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.few_rows import ProductKernel
from mixlab.ops.moe import Activation

Backend = Literal["torch", "kernels"]
"""`torch` is PyTorch's own operations, `kernels` those of `mixlab.ops.few_rows` on a CPU."""


class Form(NamedTuple):
    """How single tokens are computed."""

    dtype: torch.dtype
    """Of weights, products and what is kept of tokens."""
    backend: Backend

    @property
    def has_kernels(self) -> bool:
        return self.backend == "kernels"


class RowCache:
    """States of several sequences."""

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        """Make room for so many rows of so many tokens, and keep what is there."""
        raise NotImplementedError(type(self).__name__)

    def put(self, row: int, state: Any, n_before: int) -> None:
        """Let rows from this one on be the sequences whose states a mixer has returned.

        No more than `n_before` tokens of others have been in those rows. Nothing of them may stay:
        0 times a NaN is a NaN, so a mask does not hide it.
        """
        raise NotImplementedError(type(self).__name__)

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        """Let a row of so many tokens take the place of another one, which is forgotten.

        As for `put`, no more than `n_before` tokens have been there, and nothing of them may stay.
        """
        raise NotImplementedError(type(self).__name__)

    def row_bytes(self, n_tokens: int) -> int:
        """What a row of `n_tokens` tokens occupies, without room that is kept for later ones."""
        raise NotImplementedError(type(self).__name__)

    def aside(self, n_rows: int) -> list[Tensor]:
        """Copies of what a step replaces; nothing where it only adds to what is there."""
        return []

    def restore(self, kept: list[Tensor]) -> None:
        """Put back what `aside` gave."""


class SequenceStep:
    """One token of every row through a sequence mixer."""

    is_static = True
    """Whether a step does the same operations whatever is in its tensors: a graph can hold it."""

    def new_cache(self) -> RowCache:
        raise NotImplementedError(type(self).__name__)

    def __call__(self, x: Tensor, cache: Any, rows: Rows) -> Tensor:
        """The stream (B, D) with what norm and mixer add to it; the cache has then seen it."""
        raise NotImplementedError(type(self).__name__)


class ChannelStep:
    """One token of every row through a channel mixer."""

    is_static = True

    def __call__(self, x: Tensor) -> Tensor:
        """The stream (B, D) with what norm and mixer add to it."""
        raise NotImplementedError(type(self).__name__)


class Unit:
    """A stream divided by its root mean square; the norm's weight goes into what comes behind."""

    def __init__(self, dim: int, eps: float, like: Tensor) -> None:
        self._dim, self._eps = dim, eps
        self._offset = torch.full((), eps, device=like.device, dtype=at_least_float32(like).dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., dim) in float32 or wider, to the same."""
        if x.is_cuda:
            return nn.functional.rms_norm(x, (self._dim,), None, self._eps)
        return x * self.inverse(x)

    def inverse(self, x: Tensor) -> Tensor:
        """(..., 1) by which (..., dim) has to be multiplied."""
        # Fewer operations than the library's composite: a CPU waits on each of them.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self._offset, length, length, value=1 / self._dim).rsqrt_()


def fused(norm: RMSNorm, parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight (d_out, d_in) and bias of several maps behind one norm, whose weight they take in."""
    weight = torch.cat([part.weight.detach() for part in parts]) * norm.weight.detach()
    if all(part.bias is None for part in parts):
        return weight, None
    zeros = [part.weight.new_zeros(part.out_features) for part in parts]
    pairs = zip((part.bias for part in parts), zeros, strict=True)
    return weight, torch.cat([zero if bias is None else bias.detach() for bias, zero in pairs])


def product(weight: Tensor, bias: Tensor | None, form: Form) -> Product | ProductKernel:
    """In the dtype in which it is multiplied."""
    make = ProductKernel if form.has_kernels else Product
    return make(weight.to(form.dtype), None if bias is None else bias.to(form.dtype))


class Projection:
    """Linear maps of one normed input as a single product, with SwiGLU behind it if asked for."""

    def __init__(
        self, norm: RMSNorm, weight: Tensor, bias: Tensor | None, form: Form, *,
        activation: Activation | None = None,
    ) -> None:  # fmt: skip
        """For what `fused` returns, or its rows in another order; gates before what they gate."""
        self.wide = at_least_float32(norm.weight[:0]).dtype
        self._norm: Unit | None = None
        self._activation: Activation | None = None
        if form.has_kernels:
            weight, bias = weight.to(form.dtype), None if bias is None else bias.to(form.dtype)
            self.product = ProductKernel(weight, bias, eps=norm.eps, activation=activation)
        else:
            self._norm = Unit(norm.weight.numel(), norm.eps, norm.weight)
            self._activation = activation
            self.product = product(weight, bias, form)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) of the stream to (B, d_out) of the weights' dtype; half of it behind SwiGLU."""
        y = self.product(x if self._norm is None else self._norm(x))
        return y if self._activation is None else activate(y, self._activation)


def output(part: nn.Linear, form: Form, scale: Tensor | None = None) -> Product | ProductKernel:
    """The linear map at the end of a mixer; `scale` (d_in,) multiplies its input."""
    weight = part.weight.detach()
    bias = None if part.bias is None else part.bias.detach()
    return product(weight if scale is None else weight * scale, bias, form)


def activate(h: Tensor, activation: Activation) -> Tensor:
    """(..., F), or (..., 2 F) with gates first, to (..., F)."""
    if activation == "silu":
        return F.silu(h)
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def grown(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a shape that is nowhere smaller, with the old numbers in its first corner."""
    new = old.new_zeros(shape)
    new[tuple(slice(n) for n in old.shape)] = old
    return new


# --- what has no faster form ----------------------------------------------------------------------


class StatesOfRows(RowCache):
    """The states as the mixer itself returns them, one per row."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def reserve(self, n_rows: int, n_tokens: int) -> None:
        self.states += [None] * (n_rows - len(self.states))

    def put(self, row: int, state: Any, n_before: int) -> None:
        tensor = next(part for part in state if isinstance(part, Tensor))
        for i in range(len(tensor)):
            self.states[row + i] = row_of(state, i)

    def move(self, source: int, target: int, n_tokens: int, n_before: int) -> None:
        self.states[target], self.states[source] = self.states[source], None

    def row_bytes(self, n_tokens: int) -> int:
        tensors = [t for t in self.states[0] or () if isinstance(t, Tensor)]
        return sum(t.numel() * t.itemsize for t in tensors)


def row_of(state: Any, row: int) -> Any:
    """The state of one sequence, as if it had been read alone."""
    if isinstance(state, Tensor):
        return state[row : row + 1]
    if isinstance(state, tuple):  # a NamedTuple, as all states are
        return type(state)(*(row_of(part, row) for part in state))
    return state


class RowByRow(SequenceStep):
    """Any sequence mixer, by its own forward pass: a call for each row."""

    is_static = False

    def __init__(self, mixer: SequenceMixer, norm: RMSNorm, form: Form) -> None:
        self._mixer, self._norm = mixer, norm

    def new_cache(self) -> StatesOfRows:
        return StatesOfRows()

    def __call__(self, x: Tensor, cache: StatesOfRows, rows: Rows) -> Tensor:
        normed = self._norm(x)[:, None, None]  # B of (1, 1, D)
        added = []
        for row in range(len(rows)):
            y, cache.states[row] = self._mixer(normed[row], cache.states[row])
            added.append(y[0])
        return x + torch.cat(added)


class WholeModule(ChannelStep):
    """Any channel mixer, by its own forward pass."""

    is_static = False

    def __init__(self, mixer: nn.Module, norm: RMSNorm, form: Form) -> None:
        self._mixer, self._norm = mixer, norm

    def __call__(self, x: Tensor) -> Tensor:
        return x + self._mixer(self._norm(x)[:, None]).y[:, 0]
