"""The fused loss and the scores of tokens against PyTorch's own cross-entropy in float64.

    pytest -m gpu tests/gpu/test_cross_entropy_gpu.py

Without a GPU, TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, float32 only.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from mixlab.ops.cross_entropy import IGNORE, gpu_chunks, score_tokens
from mixlab.ops.cross_entropy.operator import nats_and_gradients

pytestmark = pytest.mark.gpu
pytest.importorskip("triton", reason="Triton is not installed")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32] if IS_INTERPRETED else [torch.float32, torch.bfloat16]
V, D = 130, 16


def case(n, dtype, n_vocab=V):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(n, D, generator=g).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(n_vocab, D, generator=g).to(DEVICE).to(dtype).float().requires_grad_()
    targets = torch.randint(n_vocab, (n,), generator=g)
    targets[::5] = IGNORE
    return h, weight, targets.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 10**6])  # of a chunk
@pytest.mark.parametrize(("n", "n_vocab"), [(1, V), (7, V), (12, 9000)])
def test_sum_and_gradients(dtype, rows, n, n_vocab, monkeypatch):
    h, weight, targets = case(n, dtype, n_vocab)
    monkeypatch.setattr(gpu_chunks, "CHUNK_BYTES", rows * n_vocab * h.element_size())
    nats, *_ = nats_and_gradients(h, weight, targets, dtype, True, True, "fused")
    got = torch.autograd.grad(3.0 * nats, [h, weight])
    wide = [z.detach().double().requires_grad_() for z in (h, weight)]
    logits = wide[0] @ wide[1].T
    want = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    grads = torch.autograd.grad(3.0 * want, wide)
    allowed = 1e-5 if dtype == torch.float32 else 1e-2  # logits are rounded to 8 bits
    assert abs(float((nats - want).detach())) <= allowed * max(1.0, float(want.detach()))
    for found, wanted in zip(got, grads, strict=True):
        assert (found.double() - wanted).norm() <= allowed * wanted.norm()


@pytest.mark.skipif(IS_INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16], ids=str)
def test_scores_of_single_tokens(compute_dtype, monkeypatch):
    monkeypatch.setattr(gpu_chunks, "CHUNK_BYTES", 3 * V * 4)
    h, weight, targets = case(40, torch.float32)
    logits = h.double() @ weight.double().T
    scores = score_tokens(h, weight, targets, compute_dtype=compute_dtype)
    want = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(scores.nats.double(), want.detach(), rtol=1e-4, atol=2e-4)
    assert scores.is_correct.tolist() == (logits.argmax(-1) == targets).tolist()
