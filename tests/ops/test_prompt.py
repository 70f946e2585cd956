"""The fused work between the products of a prompt: the definitions against plain formulas, the
kernels against the definitions."""

import pytest
import torch

from mixlab.ops.gated_delta_rule.l2_norm import EPS
from mixlab.ops.prompt import (
    DeltaLayout,
    add_and_norm,
    delta_inputs,
    gate,
    place_heads,
)
from mixlab.ops.rope import rope_table

HALF = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def noise(*shape, seed=0, dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)


# --- definitions ----------------------------------------------------------------------------------


def test_the_sum_stays_and_its_norm_comes_out():
    x, y = noise(3, 5), noise(3, 5, seed=1)
    total = x + y
    out = add_and_norm(x, y, 0.1, torch.float32)
    assert torch.equal(x, total) and out.dtype == torch.float32
    want = total / ((total**2).mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(out, want.float())


def test_heads_are_normed_turned_and_placed():
    n_rows, n_tokens, n_heads, n_keys, width = 2, 3, 4, 2, 8
    heads = noise(n_rows, n_tokens, n_heads + 2 * n_keys, width)
    scale = noise(n_heads + n_keys, width, seed=1)
    table = rope_table(torch.arange(n_tokens), 4, 10.0, torch.float64)
    q = torch.empty(n_rows, n_tokens, n_heads, width, dtype=torch.float64)
    kv = torch.empty(2, n_rows, n_keys, n_tokens, width, dtype=torch.float64)
    place_heads(heads, q, kv, table, scale, 0.1)
    found = torch.cat([q, *kv.transpose(2, 3)], dim=2)
    for head in range(n_heads + 2 * n_keys):
        want = heads[:, :, head].clone()
        if head < n_heads + n_keys:
            want = want / ((want**2).mean(-1, keepdim=True) + 0.1).sqrt() * scale[head]
            pairs = torch.view_as_complex(want[..., :4].unflatten(-1, (2, 2)).contiguous())
            pairs = pairs * torch.complex(table.cos, table.sin)
            want[..., :4] = torch.view_as_real(pairs).flatten(-2)
        torch.testing.assert_close(found[:, :, head], want)


@pytest.mark.parametrize("fades", [True, False])
def test_inputs_of_the_delta_rule(fades):
    """Token by token from the formulas."""
    layout = DeltaLayout(n_keys=2, k_dim=3, n_values=4, v_dim=5, b=33, a=38 if fades else None)
    x, taps = noise(2, 6, 44), noise(4, layout.n_channels, seed=1)
    decay, dt_bias = -noise(4, seed=2).exp(), noise(4, seed=3)
    found = delta_inputs(x, layout, taps, decay, dt_bias, 2.0)
    for t in range(6):
        total = sum(taps[3 - lag] * x[:, t - lag, :32] for lag in range(min(t, 3) + 1))
        y = total / (1 + (-total).exp())
        for head in range(2):
            for part, got in enumerate((found.q, found.k)):
                at = (2 * head + part) * 3
                want = y[:, at : at + 3]
                want = want / ((want**2).sum(-1, keepdim=True) + EPS).sqrt()
                torch.testing.assert_close(got[:, t, head], want)
        torch.testing.assert_close(found.v[:, t].flatten(1), y[:, 12:32])
        torch.testing.assert_close(found.b[:, t], 2 / (1 + (-x[:, t, 33:37]).exp()))
        want = decay * (1 + (x[:, t, 38:42] + dt_bias).exp()).log() if fades else 0 * decay
        torch.testing.assert_close(found.log_a[:, t], want.expand(2, 4))


@pytest.mark.parametrize("kind", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("eps", [0.1, None])
def test_gates(kind, eps):
    x, z = noise(3, 2, 4), noise(3, 9, seed=1)[:, :8]
    want = x if eps is None else x / ((x**2).mean(-1, keepdim=True) + eps).sqrt()
    opened = {"silu": z * z.sigmoid(), "sigmoid": z.sigmoid(), "none": torch.ones_like(z)}[kind]
    found = gate(x, None if kind == "none" else z, kind, eps=eps)
    torch.testing.assert_close(found, want.flatten(1) * opened)


# --- kernels --------------------------------------------------------------------------------------


def close(found, want):
    """A kernel's result in some dtype to the definition's in float64."""
    assert torch.isfinite(found).all()
    error = (found.double() - want).abs().max()
    assert error <= HALF[found.dtype] * want.abs().max(), error


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [64, 768])
def test_kernel_of_sum_and_norm(triton_device, dtype, width):
    from mixlab.ops.prompt import kernels

    for added in (None, noise(5, width, seed=1, dtype=dtype, device=triton_device)):
        x = noise(5, width, dtype=torch.float32, device=triton_device)
        mine = x.clone()
        out = kernels.add_and_norm(mine, added, 1e-6, dtype)
        wide = x.double().cpu()
        want = add_and_norm(wide, None if added is None else added.double().cpu(), 1e-6, wide.dtype)
        close(out.cpu(), want)
        close(mine.cpu(), wide)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rope_dim", "has_norm"), [(0, False), (8, True), (64, False)])
def test_kernel_of_heads(triton_device, dtype, rope_dim, has_norm):
    """From a part of a wide product into a part of a cache."""
    from mixlab.ops.prompt import kernels

    n_rows, n_tokens, n_heads, n_keys, width = 2, 70, 3, 1, 64
    joint = noise(n_rows, n_tokens, 7, width, dtype=dtype, device=triton_device)
    heads = joint[:, :, : n_heads + 2 * n_keys]
    scale = noise(n_heads + n_keys, width, seed=1, dtype=torch.float32, device=triton_device)
    table = rope_table(
        torch.arange(n_tokens, device=triton_device), rope_dim, 1e4, torch.float32
    )  # fmt: skip
    table = table if rope_dim else None
    cache = torch.zeros(2, 4, n_keys, 90, width, dtype=dtype, device=triton_device)
    q = torch.zeros(n_rows, n_tokens, n_heads, width, dtype=dtype, device=triton_device)
    places = cache[:, 1:3, :, :n_tokens]
    kernels.place_heads(heads, q, places, table, scale if has_norm else None, 1e-6)
    wide_q, wide_kv = q.double().cpu(), places.double().cpu()
    wide_scale = scale.double().cpu() if has_norm else None
    if table is not None:
        table = type(table)(*(part.double().cpu() for part in table))
    place_heads(heads.double().cpu(), wide_q, wide_kv, table, wide_scale, 1e-6)
    close(q.cpu(), wide_q)
    close(places.cpu(), wide_kv)
    assert not cache[:, [0, 3]].any() and not cache[:, :, :, n_tokens:].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("fades", [True, False])
@pytest.mark.parametrize("n_taps", [1, 4])
def test_kernel_of_the_delta_rules_inputs(triton_device, dtype, fades, n_taps):
    from mixlab.ops.prompt import kernels

    layout = DeltaLayout(2, 16, 3, 32, b=168, a=171 if fades else None)
    x = noise(2, 70, 176, dtype=dtype, device=triton_device)
    x[..., 171:174] *= 20  # decays next to none and next to all
    taps = noise(n_taps, layout.n_channels, seed=1, dtype=torch.float32, device=triton_device)
    decay = -noise(3, seed=2, dtype=torch.float32, device=triton_device).exp()
    dt_bias = noise(3, seed=3, dtype=torch.float32, device=triton_device)
    found = kernels.delta_inputs(x, layout, taps, decay, dt_bias, 2.0)
    taps, decay, dt_bias = (part.double().cpu() for part in (taps, decay, dt_bias))
    want = delta_inputs(x.double().cpu(), layout, taps, decay, dt_bias, 2.0)
    for mine, theirs in zip(found, want, strict=True):
        assert mine.shape == theirs.shape and mine.is_contiguous()
        close(mine.cpu(), theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("eps", [1e-6, None])
def test_kernel_of_gates(triton_device, dtype, kind, eps):
    from mixlab.ops.prompt import kernels

    x = noise(70, 3, 32, dtype=dtype, device=triton_device)
    z = noise(70, 120, seed=1, dtype=dtype, device=triton_device)[:, 8:104]
    by = None if kind == "none" else z
    found = kernels.gate(x, by, kind, eps)
    want = gate(x.double().cpu(), None if by is None else by.double().cpu(), kind, eps=eps)
    close(found.cpu(), want)
