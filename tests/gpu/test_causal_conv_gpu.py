"""The convolution's Triton kernels against its definition in float64.

    pytest -m gpu tests/gpu/test_causal_conv_gpu.py

Without a GPU, TRITON_INTERPRET=1 runs them in Triton's interpreter (slowly), float32 only.
"""

import os

import pytest
import torch

from mixlab.nn.short_conv import ShortConv
from mixlab.ops.causal_conv import causal_conv_parts
from mixlab.ops.causal_conv.operator import convolve
from mixlab.ops.causal_conv.reference import run_reference
from mixlab.ops.packing import Packing

pytestmark = pytest.mark.gpu
pytest.importorskip("triton", reason="Triton is not installed")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32] if IS_INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Numbers that were never written show up as NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(n_tokens, n_channels, n_taps, dtype, *, packed=False, tail=False):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, n_tokens, n_channels, generator=g).to(DEVICE, dtype)
    weight = torch.randn(n_channels, n_taps, generator=g).to(DEVICE)
    ids = torch.rand(2, n_tokens, generator=g).lt(0.15).cumsum(1)
    reach = Packing(ids).position.to(DEVICE) if packed else None
    before = torch.randn(2, n_taps - 1, n_channels, generator=g).to(DEVICE, dtype)
    return x, weight, before if tail else None, reach


def outcome(run, x, weight, tail, reach, silu, dtype):
    """Outputs and all gradients, computed on inputs in `dtype`."""
    leaves = [
        None if z is None else z.detach().clone().to(dtype).requires_grad_()
        for z in (x, weight, tail)
    ]
    y = run(*leaves, reach, silu)
    g = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=g).to(y.device, x.dtype).to(y.dtype))
    return [y.detach(), *(z.grad for z in leaves if z is not None)]


def by_kernel(widths):
    def run(x, weight, tail, reach, silu):
        return torch.cat(convolve(x, weight, tail, reach, silu, widths, "triton"), dim=-1)

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "packed", "tail"])
@pytest.mark.parametrize(
    ("n_tokens", "widths", "n_taps"),
    [(1, [5], 4), (37, [8, 300], 4), (70, [16], 2), (19, [24, 8], 8), (20, [8], 1), (130, [8], 3)],
)
def test_outputs_and_gradients(dtype, kind, n_tokens, widths, n_taps):
    if kind == "tail" and n_taps == 1:
        pytest.skip("one tap looks at nothing before")
    x, weight, tail, reach = inputs(
        n_tokens, sum(widths), n_taps, dtype, packed=kind == "packed", tail=kind == "tail"
    )
    for silu in (True, False):
        weight = weight.to(dtype)
        got = outcome(by_kernel(widths), x, weight, tail, reach, silu, dtype)
        want = outcome(run_reference, x, weight, tail, reach, silu, torch.float64)
        for found, wanted in zip(got, want, strict=True):
            error = (found.double() - wanted).norm() / wanted.norm()
            # Sums are float32; what comes out is rounded once to its dtype.
            assert error < {torch.float32: 1e-6, torch.float16: 1e-3}.get(dtype, 5e-3), error


def test_runs_repeat_to_the_bit():
    x, weight, _, reach = inputs(70, 16, 4, torch.float32, packed=True)
    first, second = (
        outcome(by_kernel([16]), x, weight, None, reach, True, torch.float32) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_documents_do_not_touch():
    """Not even NaN gets across, in either direction."""
    x, weight, _, _ = inputs(20, 8, 4, torch.float32)
    reach = Packing(torch.tensor([[0] * 6 + [1] * 14] * 2)).position.to(DEVICE)
    x[:, :6] = torch.nan
    y, dx, _ = outcome(by_kernel([8]), x, weight, None, reach, True, torch.float32)
    assert y[:, 6:].isfinite().all() and dx[:, 6:].isfinite().all()


@pytest.mark.skipif(IS_INTERPRETED, reason="needs a GPU")
def test_auto_takes_the_kernel_and_compiles_whole():
    conv = ShortConv(768, 4).cuda()

    def run(x):
        return conv(2 * x, (256, 512)).parts[1].sin().sum()

    x = torch.randn(2, 100, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    want = torch.autograd.grad(run(x), [x, conv.weight])
    torch._dynamo.reset()
    got = torch.autograd.grad(torch.compile(run, fullgraph=True)(x), [x, conv.weight])
    for found, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    named = causal_conv_parts(x=x, weight=conv.weight[:, 0], widths=(768,), backend="triton")
    auto = causal_conv_parts(x=x, weight=conv.weight[:, 0], widths=(768,))
    assert torch.equal(named.parts[0], auto.parts[0])
