"""The Triton kernels of attention in short rows against the definition, compiled code included."""

import pytest
import torch

from mixlab.ops.rope import RopeTable, rope_table
from mixlab.ops.row_attention import row_attention

pytestmark = pytest.mark.gpu


def run(qkv, table, d_out, backend):
    qkv = qkv.detach().requires_grad_()
    out = row_attention(qkv, table=table, scale=qkv.shape[-1] ** -0.5, backend=backend)
    return out, torch.autograd.grad(out, qkv, d_out)[0]


@pytest.mark.parametrize(
    ("length", "head_dim", "turns"),
    [
        (1, 64, True), (15, 32, True), (16, 32, False), (63, 64, True), (64, 128, True),
        (82, 64, True), (82, 64, False), (97, 32, True), (128, 64, False), (128, 128, True),
    ],
)  # fmt: skip
def test_kernels_are_as_exact_as_the_fused_ones(length, head_dim, turns):
    torch.manual_seed(0)
    shape = (5, length, 3, 3, head_dim)
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    d_out = torch.randn(5, length, 3, head_dim, device="cuda", dtype=torch.bfloat16)
    table = wide = None
    if turns:
        table = rope_table(torch.arange(length, device="cuda"), head_dim, 1e4, torch.float32)
        wide = RopeTable(table.cos.double(), table.sin.double())
    expected, d_expected = run(qkv.double(), wide, d_out.double(), "reference")
    sdpa, d_sdpa = run(qkv, table, d_out, "sdpa")
    found, d_found = run(qkv, table, d_out, "triton")
    # Beside PyTorch's error, that of the dtype they are stored in: 8 bits.
    assert (found - expected).norm() <= 1.3 * (sdpa - expected).norm() + 2**-9 * expected.norm()
    assert (d_found - d_expected).norm() <= (
        1.3 * (d_sdpa - d_expected).norm() + 2**-8 * d_expected.norm()
    )


def test_compiled_code_has_no_break_and_computes_the_same():
    torch.manual_seed(0)
    table = rope_table(torch.arange(82, device="cuda"), 64, 1e4, torch.float32)
    weight = torch.randn(3 * 2 * 64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(4, 82, 32, device="cuda", dtype=torch.bfloat16)

    def loss(weight):
        qkv = torch.nn.functional.linear(x, weight).unflatten(-1, (3, 2, 64))
        return row_attention(qkv, table=table, scale=0.1, backend="triton").float().square().mean()

    (expected,) = torch.autograd.grad(loss(weight), weight)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    (found,) = torch.autograd.grad(compiled(weight), weight)
    assert (found - expected).norm() <= 0.01 * expected.norm()
