"""SwiGLU against its definition in float64, and its operators' shapes."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mixlab.ops.swiglu import pick_backend, swiglu


def definition(x, gate_weight, up_weight):
    gate, up = x @ gate_weight.T, x @ up_weight.T
    return gate / (1 + (-gate).exp()) * up


def test_is_its_definition():
    torch.manual_seed(0)
    x, gate, up = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5, 4), (6, 4), (6, 4))
    )
    torch.testing.assert_close(swiglu(x, gate, up), definition(x, gate, up))


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), ("cpu", torch.float32), ("cuda", torch.float32)]
)
def test_kernels_are_for_half_precision_on_a_gpu(device, dtype):
    assert pick_backend(torch.device(device), dtype) == "eager"


def test_operators_have_the_shapes_that_compiled_code_expects():
    ops = torch.ops.mixlab
    with FakeTensorMode():
        wide = torch.empty(12, 3, 5).permute(1, 2, 0)  # (3, 5, 12), strided
        out = ops.swiglu_gate(wide)
        back = ops.swiglu_gate_backward(out, wide)
        with FlopCounterMode(display=False) as counter:
            product = ops.swiglu_product(torch.empty(3, 5, 4), torch.empty(12, 4))
    assert counter.get_total_flops() == 2 * 15 * 4 * 12
    assert out.shape == product.shape == (3, 5, 6)
    assert back.shape == wide.shape
    assert back.is_contiguous()


@pytest.mark.parametrize("n_out", [1, 96, 300])  # a tile has 8 x 256
def test_kernels_compute_the_gate_and_its_gradient(triton_device, n_out):
    from mixlab.ops.swiglu import kernels

    device = triton_device
    torch.manual_seed(0)
    wide = torch.randn(3, 5, 2 * n_out, requires_grad=True)
    d_out = torch.randn(3, 5, n_out)
    gate, up = wide.double().chunk(2, dim=-1)
    expected = gate / (1 + (-gate).exp()) * up
    (d_expected,) = torch.autograd.grad(expected, wide, d_out.double())
    there = wide.detach().to(device)
    out = kernels.run_forward(there).cpu()
    back = kernels.run_backward(d_out.to(device), there).cpu()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back, d_expected, rtol=1e-5, atol=1e-6)
