"""Triton kernels of SwiGLU: the gate by itself, forwards and backwards, and within its product.

Elementwise work moves 3 numbers per output forwards and 5 backwards, and nothing else. Within the
product, for passes without gradient, gate and up are never written: what a cuBLAS product and an
elementwise pass do in 473 us took 343 us on an H200 (63k x 512 to 1,536, bfloat16).
Shapes: N rows, D width of the input, F width of the output; gate and up side by side are 2 F wide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS, COLUMNS = 8, 256
"""What one program of the elementwise kernels works on."""
BLOCK_N, BLOCK_F, BLOCK_D = 128, 64, 64
"""Rows, outputs and inputs of one step of the product: two programs fit on a multiprocessor, and
one writes while the other multiplies."""


@triton.jit
def _places(N, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of a tile in the output and in gate and up side by side, and what of it exists."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    exists = (row < N)[:, None] & (column < F)
    row = row.to(tl.int64)[:, None]
    return row * F + column, row * (2 * F) + column, exists


@triton.jit
def swiglu_forward(gate_up, out, N, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place, gate_place, exists = _places(N, F, ROWS, COLUMNS)
    gate = tl.load(gate_up + gate_place, mask=exists).to(tl.float32)
    up = tl.load(gate_up + gate_place + F, mask=exists).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + place, y.to(out.dtype.element_ty), mask=exists)


@triton.jit
def swiglu_backward(
    d_out, gate_up, d_gate_up, N, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    place, gate_place, exists = _places(N, F, ROWS, COLUMNS)
    d = tl.load(d_out + place, mask=exists).to(tl.float32)
    gate = tl.load(gate_up + gate_place, mask=exists).to(tl.float32)
    up = tl.load(gate_up + gate_place + F, mask=exists).to(tl.float32)
    open_ = tl.sigmoid(gate)
    d_gate, d_up = d * up * open_ * (1 + gate * (1 - open_)), d * gate * open_
    tl.store(d_gate_up + gate_place, d_gate.to(d_gate_up.dtype.element_ty), mask=exists)
    tl.store(d_gate_up + gate_place + F, d_up.to(d_gate_up.dtype.element_ty), mask=exists)


@triton.jit
def swiglu_product(
    x,  # descriptor of (N, D)
    weight,  # descriptor of (2 F, D)
    out,  # descriptor of (N, F)
    N,
    F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N_PROGRAMS: tl.constexpr,
):
    n_across: tl.constexpr = F // BLOCK_F
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, BLOCK_N) * n_across, N_PROGRAMS):
        row, column = (tile // n_across) * BLOCK_N, (tile % n_across) * BLOCK_F
        gate = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
        for start in range(0, D, BLOCK_D):
            part = x.load([row, start])
            gate = tl.dot(part, weight.load([column, start]).T, gate)
            up = tl.dot(part, weight.load([F + column, start]).T, up)
        y = gate * tl.sigmoid(gate) * up
        out.store([row, column], y.to(out.dtype))


def run_forward(gate_up: Tensor) -> Tensor:
    """(..., F) of (..., 2 F): silu of the first half times the second."""
    n_out = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], n_out)
    n_rows = out.numel() // n_out
    swiglu_forward[_grid(n_rows, n_out)](gate_up, out, n_rows, n_out, ROWS, COLUMNS, num_warps=4)
    return out


def run_backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    """(..., 2 F), the gradient of `gate_up`."""
    n_out = d_out.shape[-1]
    n_rows = d_out.numel() // n_out
    d_gate_up = torch.empty_like(gate_up)
    swiglu_backward[_grid(n_rows, n_out)](
        d_out, gate_up, d_gate_up, n_rows, n_out, ROWS, COLUMNS, num_warps=4
    )
    return d_gate_up


def run_product(x: Tensor, weight: Tensor) -> Tensor:
    """(N, F) of (N, D) and (2 F, D), D and F multiples of `BLOCK_D` and `BLOCK_F`."""
    (n_rows, width), n_out = x.shape, len(weight) // 2
    out = x.new_empty(n_rows, n_out)
    n_programs = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
    swiglu_product[(n_programs,)](
        TensorDescriptor.from_tensor(x, [BLOCK_N, BLOCK_D]),
        TensorDescriptor.from_tensor(weight, [BLOCK_F, BLOCK_D]),
        TensorDescriptor.from_tensor(out, [BLOCK_N, BLOCK_F]),
        n_rows, n_out, width, BLOCK_N, BLOCK_F, BLOCK_D, n_programs, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def _grid(n_rows: int, n_out: int) -> tuple[int, int]:
    return triton.cdiv(n_rows, ROWS), triton.cdiv(n_out, COLUMNS)
