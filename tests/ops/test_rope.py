"""Rotary embedding against rotations of complex numbers."""

import contextlib
import os

import numpy as np
import pytest
import torch
from oracles.attention import rope as oracle

from mixlab.ops.rope import apply_rope, rope_table


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("rope_dim", "head_dim"), [(2, 2), (4, 6), (8, 8)])
def test_pairs_turn_as_complex_numbers(layout, rope_dim, head_dim):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 2, head_dim, generator=g, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 300])
    got = apply_rope(x, rope_table(positions, rope_dim, 100.0, torch.float64), layout)
    for head in range(2):
        want = oracle(x[0, :, head].numpy(), positions.numpy(), 100.0, rope_dim, layout)
        np.testing.assert_allclose(got[0, :, head].numpy(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_scores_depend_on_distances_only(layout):
    """Why a packed row needs no restart of positions."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=g, dtype=torch.float64)

    def score(a, b):
        turned = [
            apply_rope(x, rope_table(torch.tensor([p]), 8, 1e4, torch.float64), layout)
            for x, p in ((q, a), (k, b))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(1005, 1000), rel=1e-9)
    assert score(9, 4) != pytest.approx(score(10, 4), rel=1e-3)


def test_rows_may_have_positions_of_their_own():
    x = torch.randn(2, 3, 1, 4, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    both = apply_rope(x, rope_table(positions, 4, 1e4, torch.float64))
    for row in range(2):
        alone = apply_rope(x[row : row + 1], rope_table(positions[row], 4, 1e4, torch.float64))
        assert torch.equal(both[row : row + 1], alone)


def test_the_dtype_of_the_input_is_kept():
    x = torch.randn(1, 2, 1, 4, dtype=torch.bfloat16)
    table = rope_table(torch.arange(2), 2, 1e4, torch.float32)
    y = apply_rope(x, table)
    assert y.dtype == torch.bfloat16 and torch.equal(y[..., 2:], x[..., 2:])


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("has_own_positions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "rope_dim"), [(8, 8), (16, 4), (10, 6), (64, 64)])
def test_the_kernel_is_the_definition(
    monkeypatch, layout, has_own_positions, dtype, width, rope_dim
):
    """On parts of a larger tensor, as queries are of a joint product."""
    if not torch.cuda.is_available():
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("there is no GPU; TRITON_INTERPRET=1 runs the kernel on a CPU")
        monkeypatch.setattr(torch.cuda, "device_of", lambda x: contextlib.nullcontext())
    from mixlab.ops import rope_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 5, width + 2, generator=g).to(device, dtype)[:, :, 1:4, :width]
    positions = torch.tensor([3, 4, 5, 6, 300], device=device)
    if has_own_positions:
        positions = torch.stack([positions, positions + 11])
    table = rope_table(positions, rope_dim, 100.0, torch.float32)
    want = apply_rope(x.detach().requires_grad_(), table, layout)  # operation by operation
    got = rope_triton.turn(x, table.cos, table.sin, interleaved=layout == "interleaved")
    assert got.dtype == dtype
    # Both round a float32 result once; a multiply-add may round it the other way.
    torch.testing.assert_close(got, want.detach(), rtol=1e-2 if dtype.itemsize == 2 else 1e-5,
                               atol=1e-5)  # fmt: skip
