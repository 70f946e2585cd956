"""Both backends against the definition written with loops."""

import numpy as np
import pytest
import torch
from oracles.attention import attention as oracle

from mixlab.ops.attention import attention
from mixlab.ops.packing import Packing

BACKENDS = ["sdpa", "reference"]
IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2]])


def inputs(n_queries=9, n_keys=9, heads=4, groups=2, k_dim=3, v_dim=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((n_queries, heads, k_dim), (n_keys, groups, k_dim), (n_keys, groups, v_dim))
    q, k, v = (torch.randn(2, *shape, generator=g, dtype=torch.float64) for shape in shapes)
    return {"q": q, "k": k, "v": v}


def check(x, backend, window=None, ids=None):
    packing = None if ids is None else Packing(ids)
    got = attention(**x, scale=0.6, window=window, packing=packing, backend=backend)
    want = oracle(*(t.numpy() for t in x.values()), 0.6, window, None if ids is None else ids)
    # Float64 against float64.
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 9, 50])
def test_matches_the_definition(backend, groups, window):
    check(inputs(groups=groups), backend, window)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 2])
def test_packed_documents(backend, window):
    check(inputs(), backend, window, IDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_queries", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_fewer_queries_than_keys(backend, n_queries, window):
    """Queries that continue kept keys: the last positions, whatever their number."""
    check(inputs(n_queries=n_queries), backend, window)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [None, IDS])
def test_no_gradient_from_the_future_or_from_another_document(backend, ids):
    x = {name: t.requires_grad_() for name, t in inputs().items()}
    packing = None if ids is None else Packing(ids)
    out = attention(**x, scale=1.0, packing=packing, backend=backend)
    at = 5
    out[0, at].sum().backward()
    allowed = torch.zeros(9, dtype=torch.bool)
    allowed[(0 if ids is None else 5) : at + 1] = True
    assert not x["k"].grad[0, ~allowed].any() and not x["v"].grad[0, ~allowed].any()
    assert x["v"].grad[0, allowed].any(dim=(1, 2)).all()


def test_backends_agree_with_gradients():
    results = []
    for backend in BACKENDS:
        x = {name: t.requires_grad_() for name, t in inputs().items()}
        y = attention(**x, scale=0.6, window=4, packing=Packing(IDS), backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(x.values()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_equal_keys_give_the_mean_of_what_is_seen():
    """By hand: with one key for all tokens, token t gets the mean of values 0..t."""
    v = torch.arange(4.0)[None, :, None, None]
    ones = torch.ones(1, 4, 1, 1)
    y = attention(q=ones, k=ones, v=v, scale=1.0)
    assert y.flatten().tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5])
    y = attention(q=ones, k=ones, v=v, scale=1.0, window=2)
    assert y.flatten().tolist() == pytest.approx([0.0, 0.5, 1.5, 2.5])
