"""A linear map of few rows: the same product as `F.linear`, in the form that is fastest for them.

For one row BLAS reads a matrix fast along its longer side only; for a few rows it packs the matrix
anew at every call, which costs more than the product. So a map to more numbers than it takes is
kept transposed, and for several rows a packed copy is made once.
Shapes: B rows.
"""

import torch
from torch import Tensor

MIN_PACKED = 2**15
"""Numbers of a matrix from which on the packed product's own overhead is made up for."""


class Product:
    """x -> x W^T + bias, for W (d_out, d_in) that no longer changes."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype, self._bias = weight.dtype, bias
        d_out, d_in = weight.shape
        is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
        is_wide = is_plain and d_out > d_in
        self._transposed = weight.T.contiguous() if is_wide else weight.T  # (d_in, d_out)
        self._packs = is_plain and weight.numel() >= MIN_PACKED and _can_pack()
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, d_in) to (B, d_out), in the dtype of the weights."""
        x = x.to(self.dtype)
        if self._packs and len(x) > 1:
            return self._few_rows(x)
        if self._bias is None:
            return x @ self._transposed
        return torch.addmm(self._bias, x, self._transposed)

    def add_to(self, stream: Tensor, y: Tensor) -> Tensor:
        """The stream (B, d_out) with the map of y (B, d_in) added."""
        if stream.dtype != self.dtype or (self._packs and len(y) > 1):
            return stream + self(y)
        if self._bias is not None:
            stream = stream + self._bias
        return torch.addmm(stream, y, self._transposed)

    def _few_rows(self, x: Tensor) -> Tensor:
        if self._packed is None:
            weight = self._transposed.T.contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def _can_pack() -> bool:
    """Whether this build has oneDNN with the packed product, which is not public."""
    has_op = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return has_op and torch.backends.mkldnn.is_available()
