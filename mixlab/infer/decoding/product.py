"""A linear map of few rows: the same product as `F.linear`, in the form that is fastest for them.

On a CPU the weights are what has to be moved. For one row BLAS reads a matrix at half the speed of
memory, unless it comes as a batch of small ones, each of which is read from its beginning to its
end. For a few rows BLAS packs the matrix anew at every call, which costs more than the product, so
a packed copy is made once.
Shapes: B rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SPECIAL = 2**15
"""Numbers of a matrix from which on these forms make up for their own overhead."""
MIN_PACKED = 4
"""Rows from which on the packed copy is faster than the matrix as it is."""
PACKED_FOR = 16
"""Rows that it is packed for."""
STRIP = 64
"""Outputs of one product of the batch: rows that stay in the nearest cache beside the input."""


class Product:
    """x -> x W^T + bias, for W (d_out, d_in) that no longer changes."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype, self._bias, self._weight = weight.dtype, bias, weight
        self._d_out, self._d_in = weight.shape
        is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
        is_large = is_plain and weight.numel() >= MIN_SPECIAL
        self._packs = is_large and _can_pack()
        self._packed: Tensor | None = None
        self._strips: Tensor | None = None
        if is_large:
            n_strips = -(-self._d_out // STRIP)
            n_more = n_strips * STRIP - self._d_out
            weight = F.pad(weight, (0, 0, 0, n_more)) if n_more else weight.contiguous()
            self._strips = weight.view(n_strips, STRIP, self._d_in)
            self._weight = weight[: self._d_out]

    @property
    def weight(self) -> Tensor:
        return self._weight

    def __call__(self, x: Tensor) -> Tensor:
        """(B, d_in) to (B, d_out), in the dtype of the weights."""
        x = x.to(self.dtype)
        if self._strips is not None and x.shape[0] == 1:
            y = _by_strips(self._strips, x)[:, : self._d_out]
            return y if self._bias is None else y + self._bias
        if self._packs and x.shape[0] < MIN_PACKED:
            y = few_rows(self._weight, x).contiguous()
            return y if self._bias is None else y + self._bias
        if self._packs:
            packed = self._pack()
            return torch.ops.mkldnn._linear_pointwise(x, packed, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)

    def add_to(self, stream: Tensor, y: Tensor) -> Tensor:
        """The stream (B, d_out) with the map of y (B, d_in) added."""
        n_rows = y.shape[0]
        if stream.dtype != self.dtype or (self._packs and 1 < n_rows < MIN_PACKED):
            return stream + self(y)
        y = y.to(self.dtype)
        if self._strips is not None and n_rows == 1 and not self._d_out % STRIP:
            if self._bias is not None:
                stream = stream + self._bias
            whole = stream.view(-1, STRIP, 1)
            return torch.baddbmm(whole, self._strips, _column(y, len(self._strips))).view(1, -1)
        if self._packs and n_rows > 1:
            product = torch.ops.mkldnn._linear_pointwise.binary
            return product(y, stream, self._pack(), self._bias, "add")
        if self._bias is not None:
            stream = stream + self._bias
        return torch.addmm(stream, y, self._weight.T)

    def _pack(self) -> Tensor:
        if self._packed is None:
            weight = self._weight.contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
        return self._packed


def few_rows(weight: Tensor, x: Tensor) -> Tensor:
    """x W^T for W (d_out, d_in) as it is: rows (B, d_in) that differ in number from call to call.

    The larger matrix comes first: BLAS reads it faster than as the second one.
    """
    d_out, d_in = weight.shape
    if x.shape[0] == 1 and d_out % STRIP == 0:
        return _by_strips(weight.view(-1, STRIP, d_in), x)
    return torch.mm(weight, x.T).T


def _by_strips(strips: Tensor, x: Tensor) -> Tensor:
    """One row (1, d_in) through (n, STRIP, d_in), to (1, n STRIP)."""
    return torch.bmm(strips, _column(x, len(strips))).view(1, -1)


def _column(x: Tensor, n_strips: int) -> Tensor:
    """(1, d_in) as the second factor of every strip; lying down, for BLAS to read it so."""
    if x.stride(1) != 1:
        x = x.contiguous()
    return x.as_strided((n_strips, x.shape[1], 1), (0, 1, x.shape[1]))


def _can_pack() -> bool:
    """Whether this build has oneDNN with the packed product, which is not public."""
    has_op = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return has_op and torch.backends.mkldnn.is_available()
