"""The delta rule's own Triton kernels against the recurrence in float64, forward and gradients.

    pytest -m gpu tests/gpu/test_delta_rule_triton_gpu.py
Without a GPU, TRITON_INTERPRET=1 runs them in Triton's interpreter (slowly), float32 only.
"""

import os

import pytest
import torch

from mixlab.ops.gated_delta_rule import kernel_ops
from mixlab.ops.gated_delta_rule.recurrent import run_recurrent
from mixlab.ops.packing import Packing

pytest.importorskip("triton")
from mixlab.ops.gated_delta_rule import launch

pytestmark = pytest.mark.gpu
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# Errors relative to the length of the exact tensor: float32 sums, and roundings to 8 or 11 bits in
# the operands of products that are a few deep. A GPU multiplies float32 in 11 bits as well.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
DTYPES = [torch.float32] if IS_INTERPRETED else [torch.bfloat16, torch.float16]
NAMES = ("q", "k", "v", "log_a", "b", "state")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Numbers that were never written show up as NaN."""
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device; TRITON_INTERPRET=1 runs the kernels on a CPU")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def make_inputs(n_tokens, *, n_keys=1, n_heads=1, k_dim=64, v_dim=64, with_state=False, dtype):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, n_tokens, n_keys, k_dim, generator=g)
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    v = torch.randn(2, n_tokens, n_heads, v_dim, generator=g)
    log_a, b = torch.rand(2, 2, n_tokens, n_heads, generator=g)
    state = torch.randn(2, n_heads, k_dim, v_dim, generator=g) if with_state else None
    low = [x.to(DEVICE, dtype) for x in (q, k, v)]
    rest = [None if x is None else x.to(DEVICE) for x in (-log_a, b, state)]
    return dict(zip(NAMES, (*low, *rest), strict=True))


def packed_rows(n_tokens):
    ids = torch.zeros(2, n_tokens, dtype=torch.int32)
    for row, starts in enumerate([[5, 6, 64, 100], [1, 70]]):
        for start in starts:
            ids[row, start:] += 1
    return Packing(ids.to(DEVICE))


def assert_right(inputs, packing=None, slack=1.0):
    """Outputs, final state and all gradients of the kernels against those of the recurrence."""
    exact = {n: None if x is None else x.double().requires_grad_() for n, x in inputs.items()}
    o, final = run_recurrent(*exact.values(), packing, False)
    g = torch.Generator().manual_seed(1)
    do = torch.randn(o.shape, generator=g).to(inputs["v"])
    dfinal = None if packing else torch.randn(final.shape, generator=g).to(DEVICE)
    loss = (o * do.double()).sum() + (0 if packing else (final * dfinal.double()).sum())
    loss.backward()

    flat = kernel_ops._in_rows
    documents = None if packing is None else kernel_ops.documents_of(packing)
    q, k, v, log_a, b, do = flat((*list(inputs.values())[:5], do), documents)
    got_o, got_final, g, kept = launch.forward(
        q, k, v, log_a, b, inputs["state"], documents, packing is None
    )
    grads = launch.backward(q, k, v, g, b, kept, inputs["state"], do, dfinal, documents)
    pairs = {"o": (got_o, o), "final": (got_final, None if packing else final)}
    pairs |= {f"d{n}": (x, exact[n]) for n, x in zip(NAMES, grads, strict=True)}
    for name, (got, want) in pairs.items():
        if want is None:
            continue
        want = want.detach() if name in ("o", "final") else want.grad
        # What is zero in truth, as the gradient of a decay of nothing, has no relative error.
        floor = 0.1 * want.numel() ** 0.5
        error = (got.reshape(want.shape).double() - want).norm() / max(want.norm(), floor)
        assert error < slack * TOLERANCE[inputs["q"].dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 37, 64, 65, 130])
@pytest.mark.parametrize("with_state", [False, True])
def test_odd_lengths(n_tokens, with_state, dtype):
    assert_right(make_inputs(n_tokens, with_state=with_state, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_documents(dtype):
    assert_right(make_inputs(130, n_heads=2, dtype=dtype), packed_rows(130))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k_dim", "v_dim"), [(64, 128), (128, 64), (128, 128), (256, 256)])
def test_widths_and_shared_keys(k_dim, v_dim, dtype):
    if IS_INTERPRETED and k_dim == 256:
        pytest.skip("takes minutes in the interpreter")
    inputs = make_inputs(70, n_keys=2, n_heads=4, k_dim=k_dim, v_dim=v_dim, dtype=dtype)
    assert_right(inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [30.0, 1e6])
def test_extreme_decay(scale, dtype):
    """Decays to zero and beyond beside weak ones: finite, and still the recurrence."""
    inputs = make_inputs(100, dtype=dtype)
    inputs["log_a"] = inputs["log_a"] * scale
    inputs["log_a"][:, ::3] = -0.01
    # Sums of large logs lose the last digits of small ones.
    assert_right(inputs, slack=20.0 if dtype == torch.float32 else 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_for_a_whole_chunk(dtype):
    """Step 2 with one key flips the memory at each token: as badly scaled as it can be."""
    inputs = make_inputs(128, n_heads=1, dtype=dtype)
    inputs["k"] = torch.zeros_like(inputs["k"])
    inputs["k"][..., 0] = 1.0
    inputs["log_a"], inputs["b"] = torch.zeros_like(inputs["b"]), torch.full_like(inputs["b"], 2.0)
    inputs["v"] = torch.ones_like(inputs["v"])
    _, k, v, log_a, b = list(inputs.values())[:5]
    o = launch.forward(k, k, v, log_a, b, None, None, False)[0]
    want = torch.tensor([2.0, 0.0] * 64, device=DEVICE)[None, :, None, None] / 8  # 1 / sqrt(64)
    torch.testing.assert_close(o.float(), want.expand(o.shape).contiguous(), rtol=1e-2, atol=2e-2)


def test_documents_are_sealed():
    """What stands in one document changes nothing in the others, to the last bit."""
    inputs = make_inputs(130, dtype=DTYPES[0])
    packing = packed_rows(130)
    documents = kernel_ops.documents_of(packing)
    outputs = []
    for _ in range(2):
        rows = kernel_ops._in_rows(tuple(inputs.values())[:5], documents)
        outputs.append(launch.forward(*rows, None, documents, False)[0].view(2, 130, 1, 64))
        inputs["v"][:, 6:64] = 3.0
    assert torch.equal(outputs[0][0, 64:], outputs[1][0, 64:])
    assert torch.equal(outputs[0][0, :6], outputs[1][0, :6])
    assert not torch.equal(outputs[0], outputs[1])
