"""The short convolution against PyTorch's own, finite differences, and documents alone."""

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.errors import BackendError
from mixlab.ops.causal_conv import causal_conv, causal_conv_parts, pick_backend, shift
from mixlab.ops.packing import Packing

BACKENDS = ["shift", "reference"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Numbers that were never written show up as NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_inputs(n_tokens, *, n_taps=4, n_batch=2, n_channels=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n_batch, n_tokens, n_channels, generator=g, dtype=torch.float64)
    weight = torch.randn(n_channels, n_taps, generator=g, dtype=torch.float64)
    return x, weight


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_taps", [1, 2, 4])
@pytest.mark.parametrize("n_tokens", [1, 2, 9, 70])
@pytest.mark.parametrize("silu", [True, False])
def test_is_a_padded_depthwise_convolution(backend, n_taps, n_tokens, silu):
    x, weight = make_inputs(n_tokens, n_taps=n_taps)
    got = causal_conv(x=x, weight=weight, silu=silu, backend=backend).y
    want = F.conv1d(x.mT, weight[:, None], padding=n_taps - 1, groups=3)[..., :n_tokens].mT
    torch.testing.assert_close(got, F.silu(want) if silu else want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("silu", [True, False])
def test_gradients_are_those_of_finite_differences(is_packed, silu):
    x, weight = make_inputs(7)
    ids = torch.tensor([[0, 0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]])
    tail = None if is_packed else torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

    def call(x, weight, tail):
        packing = Packing(ids) if is_packed else None
        out = causal_conv(x=x, weight=weight, tail=tail, packing=packing, silu=silu)
        return out.y, out.tail

    leaves = (x.requires_grad_(), weight.requires_grad_(), tail)
    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("numbers", [1, 60, 10**9])
def test_pieces_do_not_change_the_result(monkeypatch, numbers):
    """Pieces of 8 tokens, of some rows, and all at once; gradients included."""
    monkeypatch.setattr(shift, "CPU_NUMBERS", numbers)
    ids = torch.tensor([[0] * 5 + [1] * 4 + [2] * 16, [0] * 8 + [1] * 17])
    found = {}
    for backend in BACKENDS:
        x, weight = (z.requires_grad_() for z in make_inputs(25))
        y = causal_conv(x=x, weight=weight, packing=Packing(ids), backend=backend).y
        (y * torch.arange(25.0, dtype=torch.float64)[:, None]).sum().backward()
        found[backend] = (y, x.grad, weight.grad)
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[1] * 9, [2, 7], [8, 1], [3, 3, 3]])
def test_continuing_equals_running_through(backend, sizes):
    x, weight = make_inputs(9)
    whole = causal_conv(x=x, weight=weight, backend=backend)
    tail, pieces = None, []
    for piece in x.split(sizes, dim=1):
        y, tail = causal_conv(x=piece, weight=weight, tail=tail, backend=backend)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.y, rtol=1e-12, atol=1e-13)
    assert torch.equal(tail, x[:, -3:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_taps_stop_at_a_document_boundary(backend):
    x, weight = make_inputs(20, n_batch=1)
    ids = torch.tensor([[0] * 6 + [1] + [2] * 13])
    packed = causal_conv(x=x, weight=weight, packing=Packing(ids), backend=backend).y
    for part in (slice(0, 6), slice(6, 7), slice(7, 20)):
        alone = causal_conv(x=x[:, part], weight=weight, backend=backend).y
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-13, atol=1e-14)
    # Not even what is no number gets across.
    x[:, :6] = torch.nan
    wild = causal_conv(x=x, weight=weight, packing=Packing(ids), backend=backend).y
    assert torch.equal(wild[:, 6:], packed[:, 6:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_document_boundary(backend):
    x, weight = make_inputs(12, n_batch=1)
    x.requires_grad_()
    ids = torch.tensor([[0] * 5 + [1] * 7])
    y = causal_conv(x=x, weight=weight, packing=Packing(ids), backend=backend).y
    y[:, 5:].sum().backward()
    assert not x.grad[:, :5].any() and x.grad[:, 5:].all()


def test_half_precision_is_summed_wide():
    x, weight = (z.to(torch.bfloat16) for z in make_inputs(30))
    got = causal_conv(x=x, weight=weight).y
    want = causal_conv(x=x.double(), weight=weight.double()).y
    assert got.dtype == torch.bfloat16
    # One rounding to bfloat16 (8 bits).
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-5)


def test_parts_are_the_whole_cut_apart():
    """Values and gradients; a part that nobody uses counts as zero."""
    ids = torch.tensor([[0] * 3 + [1] * 6, [0] * 9])
    found = {}
    for name in ("whole", "parts", "reference"):
        x, weight = (z.requires_grad_() for z in make_inputs(9, n_channels=6))
        inputs = {"x": x, "weight": weight, "packing": Packing(ids)}
        if name == "whole":
            parts = causal_conv(**inputs).y.split([1, 3, 2], dim=-1)
        else:
            backend = "reference" if name == "reference" else "auto"
            parts, _ = causal_conv_parts(**inputs, widths=(1, 3, 2), backend=backend)
            assert all(part.is_contiguous() for part in parts) or name == "reference"
        (parts[0].sum() + parts[2].square().sum()).backward()
        found[name] = (*parts, x.grad, weight.grad)
    for name in ("parts", "reference"):
        for got, want in zip(found[name], found["whole"], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_torch_compile_takes_it_whole():
    """One graph, forward and backward, and what is not compiled gives the same."""

    def run(x, weight):
        return causal_conv_parts(x=2 * x, weight=weight, widths=(1, 2)).parts[1].sin().sum()

    grads = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x, weight = (z.requires_grad_() for z in make_inputs(9))
        call(x, weight).backward()
        grads.append((x.grad, weight.grad))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_operators_keep_the_rules_of_pytorch():
    x, weight = make_inputs(5, n_channels=4)
    tail, reach = torch.ones(2, 3, 4).double(), torch.tensor([[0, 1, 0, 1, 2], [0, 0, 0, 1, 2]])
    leaves = (x.requires_grad_(), weight.requires_grad_())
    for given in ((*leaves, None, reach), (*leaves, tail.requires_grad_(), None)):
        torch.library.opcheck(torch.ops.mixlab.causal_conv, (*given, True, [1, 3], "shift"))


def test_a_named_backend_is_never_swapped(monkeypatch):
    cpu, cuda, half = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
    assert pick_backend("auto", cpu, half, 4) == "shift"
    with pytest.raises(BackendError, match="the device is 'cpu'"):
        causal_conv(**dict(zip(("x", "weight"), make_inputs(3), strict=True)), backend="triton")
    monkeypatch.setattr("mixlab.ops.causal_conv.HAS_TRITON", True)
    assert pick_backend("auto", cuda, half, 4) == "triton"
    assert pick_backend("shift", cuda, half, 4) == "shift"
    assert pick_backend("auto", cuda, torch.float64, 4) == pick_backend("auto", cuda, half, 9)
    with pytest.raises(BackendError, match="up to 8 taps"):
        pick_backend("triton", cuda, half, 9)
    monkeypatch.setattr("mixlab.ops.causal_conv.HAS_TRITON", False)
    with pytest.raises(BackendError, match="'triton' is not installed"):
        pick_backend("triton", cuda, half, 4)
    assert pick_backend("auto", cuda, half, 4) == "shift"
