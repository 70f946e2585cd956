"""SwiGLU's kernels against the definition in float64, compiled code included."""

import pytest
import torch

from mixlab.ops.swiglu import LEAST_ROWS, swiglu

pytestmark = pytest.mark.gpu


def inputs(n_rows, width, n_out):
    torch.manual_seed(0)
    x = torch.randn(n_rows, width, device="cuda")
    weights = [torch.randn(n_out, width, device="cuda") * width**-0.5 for _ in range(2)]
    return [t.to(torch.bfloat16).requires_grad_() for t in (x, *weights)]


def definition(x, gate_weight, up_weight):
    gate, up = x @ gate_weight.T, x @ up_weight.T
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize(
    ("n_rows", "width", "n_out"),
    [(LEAST_ROWS + 37, 128, 192), (LEAST_ROWS, 80, 192), (7, 64, 64)],  # product; two passes; few
)
def test_kernels_are_as_exact_as_bfloat16_is(n_rows, width, n_out):
    args = inputs(n_rows, width, n_out)
    wide = [t.detach().double().requires_grad_() for t in args]
    expected = definition(*wide)
    d_out = torch.randn_like(expected)
    d_expected = torch.autograd.grad(expected, wide, d_out)
    found = swiglu(*args)
    d_found = torch.autograd.grad(found, args, d_out.to(found.dtype))
    with torch.no_grad():
        without_gradient = swiglu(*args)
    for a, b in (
        (found, expected),
        (without_gradient, expected),
        *zip(d_found, d_expected, strict=True),
    ):
        assert (a - b).norm() <= 0.01 * b.norm()  # 8 bits, some roundings


def test_compiled_code_has_no_break_and_computes_the_same():
    args = inputs(LEAST_ROWS, 128, 192)

    def loss(*args):
        return swiglu(*args).float().square().mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    expected = torch.autograd.grad(loss(*args), args)
    for a, b in zip(torch.autograd.grad(compiled(*args), args), expected, strict=True):
        assert (a - b).norm() <= 0.01 * b.norm()
    with torch.no_grad():
        assert compiled(*args).item() == pytest.approx(loss(*args).item(), rel=1e-3)
