"""GPU kernels of the delta rule against float64: no worse than twice plain PyTorch's own error.

    pytest -m gpu tests/gpu/test_gated_delta_rule_gpu.py -s

Prints one line per case with the errors. Plain PyTorch is the recurrence run in bfloat16 inputs
and outputs, its state in bfloat16 too: what a straightforward implementation in that dtype gives.
"""

import pytest
import torch

from mixlab.core.errors import BackendError
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.ops.gated_delta_rule import gated_delta_rule, pick_backend
from mixlab.ops.packing import Packing

pytestmark = pytest.mark.gpu
NAMES = ("q", "k", "v", "log_a", "b", "state")
# One token, odd, one past a chunk of 64, several chunks.
LENGTHS = [1, 37, 65, 257]


@pytest.fixture(params=["triton", "fla", "flash_qla"])
def kernel(request):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        pick_backend(request.param, torch.device("cuda"), torch.bfloat16, k_dim=128, v_dim=128)
    except BackendError as error:
        pytest.skip(str(error))
    return request.param


def make_inputs(n_tokens, *, n_keys, n_heads, dim, with_state, n_batch=2):
    """float64 inputs with q, k, v and b exact in bfloat16, so that all see the same numbers."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, n_batch, n_tokens, n_keys, dim, generator=g)
    v = torch.randn(n_batch, n_tokens, n_heads, dim, generator=g)
    b = torch.rand(n_batch, n_tokens, n_heads, generator=g)
    q, k, v, b = (x.to(torch.bfloat16).double().cuda() for x in (q, k, v, b))
    log_a = -torch.rand(n_batch, n_tokens, n_heads, generator=g).double().cuda()
    state = torch.randn(n_batch, n_heads, dim, dim, generator=g).double().cuda()
    return dict(zip(NAMES, (q, k, v, log_a, b, state if with_state else None), strict=True))


def narrow(name, x):
    """The dtypes that the mixer hands over: bfloat16, with log_a, b and the state in float32."""
    wide = name in ("log_a", "b", "state")
    return None if x is None else x.to(torch.float32 if wide else torch.bfloat16)


def run(inputs, rule, packing):
    leaves = {n: None if x is None else x.clone().requires_grad_() for n, x in inputs.items()}
    o, state = rule(**leaves, packing=packing)
    g = torch.Generator().manual_seed(1)
    # The reading is exact in bfloat16 as well.
    reading = torch.randn(o.shape, generator=g).to(torch.bfloat16)
    loss = (o.double() * reading.double().cuda()).sum()
    if state is not None:
        loss = loss + (state.double() * torch.randn(state.shape, generator=g).cuda()).sum()
    loss.backward()
    found = {"o": o, "final": state} | {
        f"d{n}": None if x is None else x.grad for n, x in leaves.items()
    }
    return {n: x.detach().double() for n, x in found.items() if x is not None}


def by_name(backend):
    def rule(**inputs):
        return gated_delta_rule(**inputs, normalize_qk=True, backend=backend)

    return rule


def plain_bfloat16(q, k, v, log_a, b, state, packing):
    """The recurrence in plain PyTorch with every tensor in bfloat16."""
    low = torch.bfloat16
    q, k = (x / (x.double().square().sum(-1, keepdim=True) + 1e-6).sqrt().to(low) for x in (q, k))
    n_shared = v.shape[2] // k.shape[2]
    q, k = (x.repeat_interleave(n_shared, dim=2) for x in (q, k))
    a, b = log_a.exp().to(low), b.to(low)
    s = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    s = s if state is None else state.to(low)
    starts = None if packing is None else packing.is_start()
    outputs = []
    for t in range(v.shape[1]):
        s = s * a[:, t, :, None, None]
        if starts is not None:
            s = s.masked_fill(starts[:, t, None, None, None], 0.0)
        recalled = (s * k[:, t, ..., None]).sum(-2)
        s = s + k[:, t, ..., None] * ((v[:, t] - recalled) * b[:, t, :, None])[..., None, :]
        outputs.append((s * q[:, t, ..., None]).sum(-2))
    o = torch.stack(outputs, dim=1) * k.shape[-1] ** -0.5
    return o, None if packing is not None else s


def errors(inputs, rule, packing, exact):
    """Root mean square error of every output and gradient, relative to that of the exact one."""
    low = {n: narrow(n, x) for n, x in inputs.items()}
    found = run(low, rule, packing)
    assert found.keys() == exact.keys()
    assert all(x.isfinite().all() for x in found.values())
    floor = 1e-6  # what is zero in truth has no relative error

    def size(n, x):
        if n != "dlog_a":
            return x.square().mean().sqrt()
        # A difference of such sums, which are exactly alike at a first token without a state.
        apart = (exact["dv"] * inputs["v"]).sum(-1).square().mean().sqrt()
        return torch.maximum(x.square().mean().sqrt(), apart)

    return {
        n: ((found[n] - x).square().mean().sqrt() / (size(n, x) + floor)).item()
        for n, x in exact.items()
    }


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("case", ["plain", "state", "packed", "grouped"])
def test_error_is_at_most_twice_that_of_plain_pytorch(kernel, n_tokens, case):
    inputs = make_inputs(
        n_tokens, n_keys=2, n_heads=4 if case == "grouped" else 2, dim=128,
        with_state=case == "state",
    )  # fmt: skip
    packing = None
    if case == "packed":
        ids = torch.zeros(2, n_tokens, dtype=torch.int32)
        for row, starts in enumerate([[5, 6, 64, 100], [1, 30, 200]]):
            for start in starts:
                ids[row, start:] += 1
        packing = Packing(ids.cuda())
    exact = run(inputs, by_name("recurrent"), packing)
    got = errors(inputs, by_name(kernel), packing, exact)
    plain = errors(inputs, plain_bfloat16, packing, exact)
    chunked = errors(inputs, by_name("chunked"), packing, exact)
    cells = "  ".join(f"{n} {got[n]:.1e}/{plain[n]:.1e}/{chunked[n]:.1e}" for n in exact)
    print(f"\n{kernel} T={n_tokens} {case} (kernel/plain bf16/ours in fp32 inside): {cells}")
    for name in exact:
        # A bfloat16 rounding of the result itself (2^-9 of it on average) is always allowed.
        assert got[name] <= 2 * max(plain[name], 2**-9), name


def test_float64_chunked_on_the_gpu():
    """The matrix form does not depend on the device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    inputs = make_inputs(130, n_keys=2, n_heads=4, dim=16, with_state=True)
    got, want = (run(inputs, by_name(name), None) for name in ("chunked", "recurrent"))
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-9, atol=1e-10, msg=name)


def test_mixer_decodes_as_it_trains(kernel):
    """Prefill and single tokens against all at once, in bfloat16 autocast."""
    torch.manual_seed(0)
    cfg = GatedDeltaNetConfig(n_heads=2, head_dim=128, backend=kernel)
    mixer = cfg.build(256).cuda()
    x = torch.randn(2, 80, 256, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        whole = mixer(x).y
        state, pieces = mixer.initial_state(2, x.device, torch.bfloat16), []
        for piece in x.split([65, *[1] * 15], dim=1):
            y, state = mixer(piece, state)
            pieces.append(y)
    error = (torch.cat(pieces, 1) - whole).double().abs().max() / whole.double().abs().max()
    # Roundings of 8 bits in another order, a few deep.
    assert error < 0.03


def test_documents_are_sealed(kernel):
    """What stands in one document changes nothing in the others, to the last bit."""
    inputs = make_inputs(150, n_keys=2, n_heads=2, dim=128, with_state=False)
    inputs = {n: narrow(n, x) for n, x in inputs.items()}
    ids = torch.zeros(2, 150, dtype=torch.int32)
    ids[:, 40:] += 1
    ids[:, 110:] += 1
    packing = Packing(ids.cuda())
    before = by_name(kernel)(**inputs, packing=packing).o
    for name in ("q", "k", "v"):
        inputs[name] = inputs[name].clone()
        inputs[name][:, :40] = 3.0
    after = by_name(kernel)(**inputs, packing=packing).o
    assert torch.equal(after[:, 40:], before[:, 40:])
    assert not torch.equal(after[:, :40], before[:, :40])
