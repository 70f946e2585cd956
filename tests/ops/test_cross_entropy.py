"""The chunked head against PyTorch's own cross-entropy in float64, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.errors import BackendError
from mixlab.ops.cross_entropy import (
    IGNORE,
    chunked,
    gpu_chunks,
    linear_cross_entropy,
    pick_backend,
    score_tokens,
)
from mixlab.ops.cross_entropy.scoring import split_factors

V, D = 11, 5


def case(n, *, ignored=(), dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (n,), generator=g)
    targets[list(ignored)] = IGNORE
    return h, weight, targets


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("rows", [1, 3, 4, 100])  # rows of a chunk: one, odd, even, all
@pytest.mark.parametrize(("n", "ignored"), [(1, ()), (7, (0, 6)), (8, (3, 4, 5)), (12, range(12))])
def test_sum_and_gradients(backend, rows, n, ignored, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", rows * V)
    h, weight, targets = case(n, ignored=ignored)
    want = F.cross_entropy(h @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    want_grads = torch.autograd.grad(3.0 * want, [h, weight])
    got = linear_cross_entropy(h, weight, targets, backend=backend)
    grads = torch.autograd.grad(3.0 * got, [h, weight])
    # The same float64 sums in another order.
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    h, weight, targets = case(4, ignored=(1,))
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, targets), (h, weight))


def test_only_one_side_needs_a_gradient():
    h, weight, targets = case(5)
    frozen = weight.detach()
    linear_cross_entropy(h, frozen, targets).backward()
    want = torch.autograd.grad(F.cross_entropy(h @ frozen.T, targets, reduction="sum"), h)[0]
    torch.testing.assert_close(h.grad, want, rtol=1e-12, atol=1e-12)


def test_half_precision_products_with_a_wide_softmax():
    """Errors stay those of rounding the factors to 8 bits; sums are not rounded again."""
    h, weight, targets = case(64, dtype=torch.float32)
    got = linear_cross_entropy(h, weight, targets, compute_dtype=torch.bfloat16)
    logits = h.bfloat16().double() @ weight.bfloat16().double().T
    want = F.cross_entropy(logits, targets, reduction="sum")
    assert got.dtype == torch.float32
    # A logit of size 4 is rounded to bfloat16 by at most 2^-7; 64 tokens average that out.
    assert abs(float((got - want).detach())) < 64 * 2**-7
    got.backward()
    assert h.grad.dtype == weight.grad.dtype == torch.float32


def test_autocast_does_not_reach_inside():
    h, weight, targets = case(16, dtype=torch.float32)
    want = linear_cross_entropy(h, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_cross_entropy(h, weight, targets), want)
        assert score_tokens(h, weight, targets).nats.dtype == torch.float32


def test_large_logits_do_not_overflow():
    h = torch.tensor([[1000.0, -1000.0]])
    loss = linear_cross_entropy(h, torch.eye(2), torch.tensor([1]))
    assert float(loss) == 2000.0


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_of_single_tokens(rows, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", rows * V)
    h, weight, targets = case(8, ignored=(2, 7))
    scores = score_tokens(h, weight, targets)
    logits = h @ weight.T
    want = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(scores.nats, want.detach(), rtol=1e-12, atol=1e-13)
    assert scores.nats[2] == scores.nats[7] == 0
    assert scores.is_correct.tolist() == (logits.argmax(-1) == targets).tolist()


def test_an_indifferent_head_pays_ln_v():
    scores = score_tokens(torch.zeros(3, D), torch.zeros(V, D), torch.tensor([0, 5, IGNORE]))
    assert scores.nats.tolist() == pytest.approx([math.log(V), math.log(V), 0.0], rel=1e-6)


def test_split_factors_keep_twice_the_digits():
    """8 digits of bfloat16 become 16; factors that are narrow already are not split."""
    h, weight, _ = case(6, dtype=torch.float32)
    h, weight = h.detach(), weight.detach()
    want = h.double() @ weight.double().T
    a, b = split_factors(h, weight, torch.bfloat16)
    assert a.dtype == b.dtype == torch.bfloat16 and a.shape[1] == b.shape[1] == 3 * D
    # Each factor is off by 2^-17 of itself at most, and the two lows' product is missing.
    bound = 3 * 2**-16 * (h.abs().double() @ weight.abs().double().T)
    assert ((a.double() @ b.double().T - want).abs() <= bound).all()
    a, b = split_factors(h.bfloat16(), weight.bfloat16(), torch.bfloat16)
    assert torch.equal(a, h.bfloat16()) and torch.equal(b, weight.bfloat16())


@pytest.mark.parametrize("bytes_", [1, 5000, 2**29])
@pytest.mark.parametrize("n", [1, 127, 4096, 49152])
def test_chunks_of_a_gpu_hold_every_row(n, bytes_, monkeypatch):
    monkeypatch.setattr(gpu_chunks, "CHUNK_BYTES", bytes_)
    rows = gpu_chunks.chunk_rows(n, 49152, 2)
    most = max(1, bytes_ // (49152 * 2))
    assert 1 <= rows <= most
    assert -(-n // rows) <= 2 * -(-n // most)


def test_torch_compile_takes_it_whole():
    """One graph, and what is not compiled gives the same."""
    h, weight, targets = case(7, ignored=(2,))

    def run(h, weight):
        return linear_cross_entropy(2 * h, weight, targets) / 3

    want = torch.autograd.grad(run(h, weight), [h, weight])
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grads = torch.autograd.grad(compiled(h, weight), [h, weight])
    for found, wanted in zip(grads, want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_operator_keeps_the_rules_of_pytorch():
    h, weight, targets = case(4, ignored=(1,))
    for wants in ((True, True), (False, True), (False, False)):
        given = (h, weight, targets, torch.float64, *wants, "chunked")
        if all(wants):
            torch.library.opcheck(torch.ops.mixlab.linear_cross_entropy, given)
        found = torch.ops.mixlab.linear_cross_entropy(*given)
        assert [x.numel() > 0 for x in found[1:]] == list(wants)


def test_a_named_backend_is_never_swapped(monkeypatch):
    cpu, cuda, half = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
    assert pick_backend("auto", cpu, half) == "chunked"
    h, weight, targets = case(3)
    with pytest.raises(BackendError, match="the device is 'cpu'"):
        linear_cross_entropy(h, weight, targets, backend="fused")
    monkeypatch.setattr("mixlab.ops.cross_entropy.HAS_TRITON", True)
    assert pick_backend("auto", cuda, half) == pick_backend("fused", cuda, half) == "fused"
    assert pick_backend("chunked", cuda, half) == "chunked"
    assert pick_backend("auto", cuda, torch.float64) == "chunked"
    with pytest.raises(BackendError, match="float64"):
        pick_backend("fused", cuda, torch.float64)
    monkeypatch.setattr("mixlab.ops.cross_entropy.HAS_TRITON", False)
    with pytest.raises(BackendError, match="'triton' is not installed"):
        pick_backend("fused", cuda, half)
