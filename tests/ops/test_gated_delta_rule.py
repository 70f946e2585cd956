"""The delta rule's backends against an independent oracle, each other, and cases done by hand."""

import numpy as np
import pytest
import torch
from oracles.gated_delta_rule import gated_delta_rule as oracle

from mixlab.core.errors import BackendError
from mixlab.ops.gated_delta_rule import chunked, gated_delta_rule, pick_backend
from mixlab.ops.packing import Packing

LENGTHS = [1, 7, 33, 63, 64, 65, 130]  # one token, odd, around chunks of 32 and 64, several
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Numbers that were never written show up as NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_inputs(n_tokens, *, n_keys=2, n_heads=2, k_dim=5, v_dim=3, n_batch=2, b_max=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, n_batch, n_tokens, n_keys, k_dim, generator=g, dtype=torch.float64)
    v = torch.randn(n_batch, n_tokens, n_heads, v_dim, generator=g, dtype=torch.float64)
    log_a, b = torch.rand(2, n_batch, n_tokens, n_heads, generator=g, dtype=torch.float64)
    state = torch.randn(n_batch, n_heads, k_dim, v_dim, generator=g, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    return {"q": q, "k": k, "v": v, "log_a": -log_a, "b": b_max * b, "state": state}


def documents(n_batch, n_tokens):
    """Document numbers with short and long documents, others in every row; one starts at 64."""
    starts = [[3, 4, 40, 64, 100], [1, 63, 65, 128]]
    ids = torch.zeros(n_batch, n_tokens, dtype=torch.int32)
    for row in range(n_batch):
        for start in starts[row % 2]:
            ids[row, start:] += 1
    return ids


def run_with_gradients(inputs, backend, **options):
    """Outputs, and gradients of a random reading of both, for all inputs that are tensors."""
    leaves = {name: None if x is None else x.clone().requires_grad_() for name, x in inputs.items()}
    out = gated_delta_rule(**leaves, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    loss = torch.zeros(())
    for x in (out.o, out.state):
        if x is not None:
            loss = loss + (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)).sum()
    loss.backward()
    found = {"o": out.o.detach(), "final": None if out.state is None else out.state.detach()}
    return found | {f"d{name}": None if x is None else x.grad for name, x in leaves.items()}


def assert_same(got, want, **tolerance):
    for name, x in want.items():
        if x is not None:
            torch.testing.assert_close(got[name], x, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def as_numpy(inputs):
    return {name: None if x is None else x.numpy() for name, x in inputs.items()}


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_forward_is_the_matrix_form(backend, n_tokens):
    inputs = make_inputs(n_tokens, n_keys=2, n_heads=4)
    out = gated_delta_rule(**inputs, backend=backend)
    want_o, want_state = oracle(**as_numpy(inputs))
    # Same float64 sums in another order: only rounding may differ.
    np.testing.assert_allclose(out.o, want_o, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.state, want_state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_packed_forward_is_the_matrix_form(backend):
    inputs = make_inputs(130) | {"state": None}
    ids = documents(2, 130)
    out = gated_delta_rule(**inputs, packing=Packing(ids), backend=backend)
    want_o, _ = oracle(**as_numpy(inputs), ids=ids.numpy())
    np.testing.assert_allclose(out.o, want_o, rtol=1e-10, atol=1e-12)
    assert out.state is None


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("n_heads", [2, 6])
@pytest.mark.parametrize("normalize_qk", [False, True])
def test_chunked_gradients_are_those_of_the_recurrence(n_tokens, n_heads, normalize_qk):
    inputs = make_inputs(n_tokens, n_heads=n_heads)
    got = run_with_gradients(inputs, "chunked", normalize_qk=normalize_qk)
    want = run_with_gradients(inputs, "recurrent", normalize_qk=normalize_qk)
    # float64 rounding, grown by sums over up to 130 tokens.
    assert_same(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_packed_gradients_are_those_of_the_recurrence(n_tokens):
    inputs = make_inputs(n_tokens, n_heads=4) | {"state": None}
    packing = Packing(documents(2, n_tokens))
    got = run_with_gradients(inputs, "chunked", packing=packing)
    assert_same(
        got, run_with_gradients(inputs, "recurrent", packing=packing), rtol=1e-9, atol=1e-11
    )


def test_blocks_do_not_change_the_result(monkeypatch):
    """Small blocks cut rows and chunks apart, large ones hold everything at once."""
    inputs = make_inputs(130, n_batch=3)
    want = run_with_gradients(inputs, "chunked")
    for tokens in (1, 130, 300, 10**6):
        monkeypatch.setattr(chunked, "CPU_TOKENS", tokens)
        assert_same(run_with_gradients(inputs, "chunked"), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 32, 64, 200])
def test_chunk_size_does_not_change_the_result(monkeypatch, chunk):
    inputs = make_inputs(130, n_heads=4) | {"state": None}
    packing = Packing(documents(2, 130))
    want = run_with_gradients(inputs, "recurrent", packing=packing)
    monkeypatch.setattr(chunked, "chunk_size", lambda k_dim, device: chunk)
    got = run_with_gradients(inputs, "chunked", packing=packing)
    assert_same(got, want, rtol=1e-9, atol=1e-11)


def test_chunked_gradients_are_those_of_finite_differences():
    inputs = make_inputs(6, n_heads=4, n_batch=1, k_dim=3, v_dim=2)
    leaves = [x.requires_grad_() for x in inputs.values()]

    def call(*args):
        return gated_delta_rule(
            **dict(zip(inputs, args, strict=True)), normalize_qk=True, backend="chunked"
        )

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_documents_are_as_if_alone(backend):
    inputs = make_inputs(130) | {"state": None}
    ids = documents(2, 130)
    packed = gated_delta_rule(**inputs, packing=Packing(ids), backend=backend).o
    for row in range(2):
        for document in ids[row].unique():
            mine = (ids[row] == document).nonzero().flatten()
            alone = {n: None if x is None else x[row : row + 1, mine] for n, x in inputs.items()}
            want = gated_delta_rule(**alone, backend=backend).o[0]
            # The chunks fall elsewhere, so rounding differs.
            torch.testing.assert_close(packed[row, mine], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_no_gradient_crosses_a_document_boundary(backend):
    """Exactly zero, with and without a chunk boundary between, and from a wild neighbour."""
    inputs = make_inputs(130, n_batch=1) | {"state": None}
    ids = torch.zeros(1, 130, dtype=torch.int32)
    ids[:, 20:] += 1
    ids[:, 100:] += 1
    leaves = {n: None if x is None else x.clone().requires_grad_() for n, x in inputs.items()}
    gated_delta_rule(**leaves, packing=Packing(ids), backend=backend).o[:, 20:100].sum().backward()
    for name in ("q", "k", "v", "log_a", "b"):
        gradient = leaves[name].grad[0]
        assert gradient[20:100].any(), name
        assert not gradient[:20].any() and not gradient[100:].any(), name
    changed = dict(inputs, v=inputs["v"].clone())
    changed["v"][:, :20] = 1e9
    runs = [
        gated_delta_rule(**x, packing=Packing(ids), backend=backend).o for x in (inputs, changed)
    ]
    assert torch.equal(runs[0][:, 20:], runs[1][:, 20:])


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_continuing_equals_running_through(backend):
    inputs = make_inputs(130, n_heads=4)
    whole = gated_delta_rule(**inputs, backend=backend)
    state, pieces = inputs.pop("state"), []
    for part in (slice(0, 1), slice(1, 66), slice(66, 130)):
        piece = {name: x[:, part] for name, x in inputs.items()}
        o, state = gated_delta_rule(**piece, state=state, backend=backend)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, 1), whole.o, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, whole.state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 800.0, 1e6])
def test_extreme_decay(scale):
    """Decays to exactly zero and beyond: finite, and still the recurrence."""
    inputs = make_inputs(100)
    inputs["log_a"] = inputs["log_a"] * scale
    inputs["log_a"][:, ::3] = -1e-4  # strong and weak decays side by side
    got = run_with_gradients(inputs, "chunked")
    assert all(x.isfinite().all() for x in got.values())
    # Sums of up to 64 logs of up to 1000 lose about 1e-11.
    assert_same(got, run_with_gradients(inputs, "recurrent"), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e6])
def test_float32_stays_near_float64_under_extreme_decay(scale):
    inputs = make_inputs(130)
    inputs["log_a"] = inputs["log_a"] * scale
    inputs["log_a"][:, ::3] = -1e-4
    exact = run_with_gradients(inputs, "recurrent")
    narrow = {name: x.to(torch.float32) for name, x in inputs.items()}
    for name, x in run_with_gradients(narrow, "chunked").items():
        # A few hundred float32 roundings relative to the largest entry.
        assert (x.double() - exact[name]).abs().max() <= 3e-5 * exact[name].abs().max(), name


def test_beta_up_to_two():
    inputs = make_inputs(130, b_max=2.0)
    inputs["log_a"] = torch.zeros_like(inputs["log_a"])  # plain delta rule, nothing fades
    assert_same(
        run_with_gradients(inputs, "chunked"),
        run_with_gradients(inputs, "recurrent"),
        rtol=1e-9, atol=1e-10,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_overwrites_the_value_of_a_repeated_key(backend):
    """With no decay and full steps the state is a dictionary: the last write wins."""
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[None, :, None]  # keys e1, e2, e1
    v = torch.tensor([[5.0], [7.0], [9.0]])[None, :, None]
    ones, zeros = torch.ones(1, 3, 1), torch.zeros(1, 3, 1)
    out = gated_delta_rule(q=k, k=k, v=v, log_a=zeros, b=ones, state=None, backend=backend)
    assert out.state[0, 0].tolist() == [[9.0], [7.0]]


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_one_key_for_a_whole_chunk(backend):
    """The same key at each of 128 tokens with step 2 flips the memory: v - (old - v) = 2 v - old.

    The triangular system is as badly scaled as it can be here; powers of it would overflow.
    """
    k = torch.zeros(1, 128, 1, 4)
    k[..., 0] = 1.0
    v = torch.ones(1, 128, 1, 1)
    log_a, b = torch.zeros(1, 128, 1), torch.full((1, 128, 1), 2.0)
    out = gated_delta_rule(q=k, k=k, v=v, log_a=log_a, b=b, state=None, backend=backend)
    # 2, 0, 2, 0, ... read with 1 / sqrt(4); integers, so exact.
    assert out.o.flatten().tolist() == [1.0, 0.0] * 64


def test_half_precision_comes_out_as_it_came_in():
    inputs = {name: x.to(torch.bfloat16) for name, x in make_inputs(20).items()}
    out = gated_delta_rule(**inputs, backend="chunked")
    assert out.o.dtype == torch.bfloat16 and out.state.dtype == torch.float32
    wide = {name: x.double() for name, x in inputs.items()}
    want = gated_delta_rule(**wide, backend="recurrent").o
    # Computed in float32, so one rounding to bfloat16 (8 bits) is all that differs.
    torch.testing.assert_close(out.o.double(), want, rtol=2**-8, atol=1e-5)


def test_autocast_does_not_reach_inside():
    inputs = {name: x.to(torch.float32) for name, x in make_inputs(70).items()}
    want = run_with_gradients(inputs, "chunked")
    with torch.autocast("cpu", torch.bfloat16):
        got = run_with_gradients(inputs, "chunked")
    assert_same(got, want, rtol=0, atol=0)


def test_inputs_are_left_alone():
    inputs = make_inputs(64, n_keys=1, n_heads=1, n_batch=1)
    inputs["log_a"] = inputs["log_a"] * 1e5
    before = {name: x.clone() for name, x in inputs.items()}
    gated_delta_rule(**inputs, backend="chunked")
    assert all(torch.equal(inputs[name], x) for name, x in before.items())


@pytest.mark.parametrize("backend", ["fla", "flash_qla", "triton"])
def test_a_kernel_is_never_swapped_silently(backend):
    with pytest.raises(BackendError, match="need CUDA"):
        pick_backend(backend, CPU, torch.bfloat16, k_dim=128, v_dim=128)
    with pytest.raises(BackendError, match="need CUDA"):
        gated_delta_rule(**make_inputs(3), backend=backend)
    assert pick_backend("auto", CPU, torch.bfloat16, k_dim=64, v_dim=64) == "chunked"
    assert pick_backend("recurrent", CPU, torch.bfloat16, k_dim=64, v_dim=64) == "recurrent"


def test_kernel_choice_on_a_gpu(monkeypatch):
    """Decided from device, dtype and widths alone, so it can be told without a GPU."""
    from mixlab.ops.gated_delta_rule import kernels

    cuda, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(kernels, "INSTALLED", {"fla", "flash_qla", "tilelang"})
    monkeypatch.setattr(kernels, "TRITON", (3, 6, 0))
    monkeypatch.setattr(kernels, "_capability", lambda device: 9)
    monkeypatch.setattr(kernels, "_shared_memory", lambda device: 230_000)
    assert pick_backend("auto", cuda, half, k_dim=64, v_dim=64) == "fla"
    assert pick_backend("auto", cuda, torch.float32, k_dim=64, v_dim=64) == "chunked"
    assert pick_backend("auto", cuda, half, k_dim=128, v_dim=128) == "flash_qla"
    assert pick_backend("auto", cuda, half, k_dim=128, v_dim=128, b_max=2.0) == "fla"
    monkeypatch.setattr(kernels, "INSTALLED", {"fla", "flash_qla", "tilelang", "triton"})
    for width in (64, 256):
        assert pick_backend("auto", cuda, half, k_dim=width, v_dim=width) == "triton"
    assert pick_backend("auto", cuda, half, k_dim=48, v_dim=64) == "fla"
    with pytest.raises(BackendError, match="keys of 64, 128, 256"):
        pick_backend("triton", cuda, half, k_dim=48, v_dim=64)
    monkeypatch.setattr(kernels, "_shared_memory", lambda device: 99_000)
    with pytest.raises(BackendError, match="shared memory"):
        pick_backend("triton", cuda, half, k_dim=256, v_dim=256)
    assert pick_backend("flash_qla", cuda, half, k_dim=128, v_dim=128) == "flash_qla"
    with pytest.raises(BackendError, match="step sizes up to 1"):
        pick_backend("flash_qla", cuda, half, k_dim=128, v_dim=128, b_max=2.0)
    with pytest.raises(BackendError, match="heads of 128 only"):
        pick_backend("flash_qla", cuda, half, k_dim=64, v_dim=128)
    with pytest.raises(BackendError, match="float64"):
        pick_backend("fla", cuda, torch.float64, k_dim=64, v_dim=64)
    monkeypatch.setattr(kernels, "INSTALLED", {"fla", "flash_qla"})
    with pytest.raises(BackendError, match="install tilelang"):
        pick_backend("fla", cuda, half, k_dim=64, v_dim=64)
    monkeypatch.setattr(kernels, "TRITON", (3, 7, 1))
    assert pick_backend("fla", cuda, half, k_dim=64, v_dim=64) == "fla"
    monkeypatch.setattr(kernels, "INSTALLED", frozenset())
    with pytest.raises(BackendError, match="not installed"):
        pick_backend("fla", cuda, half, k_dim=64, v_dim=64)
    assert pick_backend("auto", cuda, half, k_dim=64, v_dim=64) == "chunked"
