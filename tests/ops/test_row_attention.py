"""Attention in short rows against the textbook formula, and its kernels where Triton is there."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mixlab.core.errors import BackendError
from mixlab.ops.rope import rope_table
from mixlab.ops.row_attention import obstacle, row_attention


def textbook(qkv, table, scale):
    """float64, one row and head after the other; channels turn as complex numbers."""
    out = torch.empty_like(qkv[:, :, 0])
    half = qkv.shape[-1] // 2
    for row in range(len(qkv)):
        for head in range(qkv.shape[3]):
            q, k, v = qkv[row, :, :, head].unbind(1)
            if table is not None:
                turn = torch.complex(table.cos, table.sin).to(torch.complex128)
                q, k = (torch.complex(x[:, :half], x[:, half:]) * turn for x in (q, k))
                scores = (q[:, None] * k[None].conj()).real.sum(dim=-1)
            else:
                scores = (q[:, None] * k[None]).sum(dim=-1)
            weights = (scale * scores).exp()
            out[row, :, head] = (weights / weights.sum(dim=1, keepdim=True)) @ v
    return out


def example(length, head_dim, *, turns, dtype=torch.float64, n=2, n_heads=3):
    torch.manual_seed(0)
    qkv = torch.randn(n, length, 3, n_heads, head_dim, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = rope_table(torch.arange(length), head_dim, 10_000.0, wide) if turns else None
    return qkv, table


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_is_the_textbook_formula(backend, turns):
    qkv, table = example(7, 8, turns=turns)
    out = row_attention(qkv, table=table, scale=0.3, backend=backend)
    torch.testing.assert_close(out, textbook(qkv, table, 0.3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("device", "dtype", "length", "head_dim", "reason"),
    [
        ("cpu", torch.bfloat16, 82, 64, "CUDA GPU"),
        ("cuda", torch.float32, 82, 64, "half precision"),
        ("cuda", torch.bfloat16, 129, 64, "129 positions"),
        ("cuda", torch.bfloat16, 82, 48, "48 wide"),
    ],
)
def test_kernels_say_why_they_cannot_run(device, dtype, length, head_dim, reason):
    assert reason in obstacle(torch.device(device), dtype, length=length, head_dim=head_dim)


def test_a_named_backend_that_cannot_run_is_an_error():
    qkv, table = example(7, 32, turns=True)
    with pytest.raises(BackendError, match=r"'triton' cannot run.*'sdpa' runs everywhere"):
        row_attention(qkv, table=table, scale=1.0, backend="triton")


def test_the_operator_has_the_shapes_that_compiled_code_expects():
    import mixlab.ops.row_attention  # noqa: F401  registers it

    ops = torch.ops.mixlab
    with FakeTensorMode():
        qkv = torch.empty(2, 3, 7, 3, 32).transpose(1, 2)  # (B, T, 3, H, K), strided
        with FlopCounterMode(display=False) as counter:
            out = ops.row_attention(qkv, None, None, 0.1)
        back = ops.row_attention_backward(out, qkv, None, None, 0.1)
    assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 7 * 7 * 32  # scores and values
    assert out.shape == (2, 7, 3, 32)
    assert back.shape == qkv.shape
    assert back.is_contiguous()


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize(("length", "head_dim"), [(17, 32), (65, 32), (82, 64)])
def test_kernels_compute_the_formula_and_its_gradient(triton_device, length, head_dim, turns):
    if triton_device != "cpu":
        pytest.skip("tests/gpu compares them in half precision, for which they have room")
    from mixlab.ops.row_attention import kernels

    qkv, table = example(length, head_dim, turns=turns, dtype=torch.float32, n=1, n_heads=2)
    angles = (None, None) if table is None else (table.cos, table.sin)
    wide = qkv.double().requires_grad_()
    expected = textbook(wide, table, 0.2)
    d_out = torch.randn(expected.shape)
    (d_expected,) = torch.autograd.grad(expected, wide, d_out.double())
    out = kernels.run_forward(qkv, *angles, 0.2).double()
    assert (out - expected).abs().max() < 1e-5
    back = kernels.run_backward(qkv, *angles, 0.2, d_out).double()
    assert (back - d_expected).abs().max() < 1e-4
