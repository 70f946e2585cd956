"""The contract of a sequence mixer, run on every entry of the registry."""

import pytest
import torch
from tiny_mixers import D_MODEL, SEQUENCE, cases

from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS
from mixlab.ops.packing import Packing

CPU = torch.device("cpu")


@pytest.fixture(params=cases(SEQUENCE), ids=" ".join)
def cfg(request):
    kind, variant = request.param
    return SEQUENCE_MIXERS[kind](**SEQUENCE[kind][variant])


@pytest.fixture
def mixer(cfg):
    torch.manual_seed(0)
    return cfg.build(D_MODEL).double()


def draw(*shape, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, D_MODEL, generator=g, dtype=torch.float64)


def test_every_entry_is_tried():
    assert set(SEQUENCE) >= set(SEQUENCE_MIXERS), "add tiny sizes for the new mixer"


def test_is_causal(mixer):
    """The output at t has exactly zero gradient with respect to every later input."""
    x = draw(1, 9).requires_grad_()
    mixer(x).y[0, 4].sum().backward()
    assert x.grad[0, 4].any() and not x.grad[0, 5:].any()


def test_looks_back(mixer):
    x = draw(1, 9).requires_grad_()
    mixer(x).y[0, 4].sum().backward()
    assert x.grad[0, 3].any()


@pytest.mark.parametrize("sizes", [(1,) * 9, (4, 1, 1, 3), (9,), (1, 8)])
def test_continuing_equals_one_call(mixer, sizes):
    """Prefill and decoding are the training computation, cut differently."""
    x = draw(2, 9)
    want = mixer(x).y
    state, pieces = mixer.initial_state(2, CPU, torch.float64), []
    for piece in x.split(sizes, dim=1):
        out = mixer(piece, state)
        state = out.state
        pieces.append(out.y)
    # The same sums in another order, in float64.
    torch.testing.assert_close(torch.cat(pieces, dim=1), want, rtol=1e-9, atol=1e-11)


def test_a_state_is_not_changed_by_its_use(mixer):
    """Two continuations of one prompt start from the same state."""
    x = draw(1, 6)
    state = mixer(x[:, :4], mixer.initial_state(1, CPU, torch.float64)).state
    first = mixer(x[:, 4:], state).y
    mixer(draw(1, 2, seed=5), state)
    assert torch.equal(mixer(x[:, 4:], state).y, first)


def test_no_state_is_returned_where_none_was_given(mixer):
    assert mixer(draw(1, 3)).state is None


def test_packed_documents_are_as_if_alone(mixer):
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1, 2, 2]])
    x = draw(2, 9)
    packed = mixer(x, None, Packing(ids)).y
    for row in range(2):
        for document in ids[row].unique():
            here = ids[row] == document
            alone = mixer(x[row : row + 1, here]).y[0]
            torch.testing.assert_close(packed[row, here], alone, rtol=1e-9, atol=1e-11)


def test_no_gradient_crosses_a_document_boundary(mixer):
    x = draw(1, 8).requires_grad_()
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    mixer(x, None, Packing(ids)).y[0, 3:].sum().backward()
    assert not x.grad[0, :3].any() and x.grad[0, 3:].any(dim=-1).all()


def test_rows_do_not_see_each_other(mixer):
    x = draw(3, 6)
    torch.testing.assert_close(mixer(x).y[1:2], mixer(x[1:2]).y, rtol=1e-10, atol=1e-12)


def test_gradient_reaches_every_parameter(mixer):
    mixer(draw(2, 9)).y.square().sum().backward()
    missing = [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_parameter_formula(cfg, mixer):
    assert cfg.n_params(D_MODEL) == sum(p.numel() for p in mixer.parameters())


@pytest.mark.parametrize("n_tokens", [1, 2, 5])
def test_state_formula(cfg, n_tokens):
    """Bytes of all tensors of the state, of one sequence."""
    mixer = cfg.build(D_MODEL)
    state = mixer.initial_state(3, CPU, torch.float32)
    state = mixer(draw(3, n_tokens).float(), state).state
    tensors = [t for t in state if isinstance(t, torch.Tensor)]
    found = sum(t.numel() * t.itemsize for t in tensors) / 3
    assert cfg.state_bytes(D_MODEL, n_tokens, 4) == found


def test_half_precision_in_half_precision_out(mixer):
    x = draw(1, 5)
    want = mixer(x).y
    got = mixer.to(torch.bfloat16)(x.to(torch.bfloat16)).y
    assert got.dtype == torch.bfloat16
    # Eight bits of mantissa through a handful of products.
    assert (got.double() - want).norm() < 0.08 * want.norm()
