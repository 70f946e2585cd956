"""The kernels of a CPU for a few rows against the definitions, written out."""

import platform
import shutil
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

from mixlab.core.errors import BackendError
from mixlab.ops.few_rows import (
    AttentionKernel,
    DeltaRuleKernel,
    ExpertsKernel,
    ProductKernel,
    latent_attention,
    library,
    obstacle,
)
from mixlab.ops.few_rows.kernels import in_panels

pytestmark = pytest.mark.skipif(
    obstacle(torch.float32) is not None, reason=f"no kernels here: {obstacle(torch.float32)}"
)
BUILT = None if obstacle(torch.float32) else library.load(torch.float32)._name
DTYPES = [torch.float32, torch.float64]
EPS = 1e-5


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[1, 2])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_close(found, want):
    """Sums of some hundred terms in another order, in units of the largest number."""
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-12}[found.dtype]
    scale = want.abs().max().item()
    torch.testing.assert_close(found, want, rtol=0, atol=tolerance * scale)


def unit(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def activated(h, activation):
    if activation == "swiglu":
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.silu(h) if activation == "silu" else h


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_rows", [1, 3, 8, 9, 21])
@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (130, 33), (64, 300)], ids=str)
@pytest.mark.parametrize("activation", [None, "swiglu", "silu"])
def test_a_product(shape, n_rows, activation, dtype, g):
    d_out, d_in = shape
    d_out *= 2 if activation == "swiglu" else 1
    weight, bias, x, stream = (
        torch.randn(size, generator=g, dtype=dtype)
        for size in ((d_out, d_in), (d_out,), (n_rows, d_in), (n_rows, shape[0]))
    )
    kernel = ProductKernel(weight, bias, eps=EPS, activation=activation)
    want = activated(unit(x) @ weight.T + bias, activation)
    assert_close(kernel(x), want)
    assert_close(kernel.add_to(stream, x), stream + want)
    assert_close(ProductKernel(weight, None)(x), x @ weight.T)


def test_rows_may_lie_apart(g):
    x, weight = torch.randn(3, 40, generator=g), torch.randn(7, 20, generator=g)
    assert_close(ProductKernel(weight, None)(x[:, ::2]), x[:, ::2] @ weight.T)


def test_large_products_are_shared_among_threads(n_threads, g):
    x, weight = torch.randn(12, 300, generator=g), torch.randn(700, 300, generator=g)
    assert_close(ProductKernel(weight, None)(x), x @ weight.T)


def test_panels_hold_every_weight_once(g):
    weight = torch.randn(10, 3, generator=g)
    panels = in_panels(weight, 4, pairs=False)
    assert panels.shape == (2, 3, 8)
    assert torch.equal(panels.transpose(1, 2).reshape(16, 3)[:10], weight)
    assert not panels.transpose(1, 2).reshape(16, 3)[10:].any()
    pairs = in_panels(weight, 4, pairs=True)  # five gates, five ups
    assert torch.equal(pairs[0, :, :4].T, weight[:4])
    assert torch.equal(pairs[0, :, 4:].T, weight[5:9])
    assert torch.equal(pairs[1, :, 0], weight[4]) and torch.equal(pairs[1, :, 4], weight[9])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["swiglu", "silu"])
@pytest.mark.parametrize(("n_rows", "n_experts", "n_active"), [(1, 4, 2), (8, 3, 1), (20, 5, 5)])
def test_experts(n_rows, n_experts, n_active, activation, dtype, n_threads, g):
    d_model, width = 40, 50
    n_up = width * (2 if activation == "swiglu" else 1)
    up = torch.randn(n_experts, n_up, d_model, generator=g, dtype=dtype)
    down = torch.randn(n_experts, d_model, width, generator=g, dtype=dtype)
    x = torch.randn(n_rows, d_model, generator=g, dtype=dtype)
    chosen = torch.rand(n_rows, n_experts, generator=g).topk(n_active).indices
    weights = torch.rand(n_rows, n_active, generator=g, dtype=dtype)
    want = x.clone()
    for row in range(n_rows):
        for expert, weight in zip(chosen[row], weights[row], strict=True):
            hidden = activated(up[expert] @ unit(x[row]), activation)
            want[row] += weight * (down[expert] @ hidden)
    kernel = ExpertsKernel(up, down, eps=EPS, activation=activation)
    assert_close(kernel(x, chosen, weights), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_queries", "head_dim"), [(1, 64), (3, 20), (12, 40)])
@pytest.mark.parametrize("settings", ["plain", "full", "window"])
def test_attention(n_queries, head_dim, settings, dtype, n_threads, g):
    """Rows of 3, 150 and 37 tokens write one more each."""
    n_kv, rope_dim, n_seen = 2, 8, torch.tensor([3, 150, 37])
    n_heads, n_rows = n_kv * n_queries, 3
    window = 40 if settings == "window" else None
    gated = normed = settings == "full"
    scale = torch.randn(n_heads + n_kv, head_dim, generator=g, dtype=dtype) if normed else None
    kernel = AttentionKernel(
        torch.empty(0, dtype=dtype), n_heads=n_heads, n_kv_heads=n_kv, head_dim=head_dim,
        rope_dim=rope_dim, window=window, scale=scale, norms_all=False, eps=EPS, gated=gated,
    )  # fmt: skip
    n_all = n_heads * (2 if gated else 1) + 2 * n_kv
    heads = 0.3 * torch.randn(n_rows, n_all, head_dim, generator=g, dtype=dtype)
    k, v = (torch.randn(n_rows, n_kv, 160, head_dim, generator=g, dtype=dtype) for _ in range(2))
    angles = torch.rand(n_rows, 1, rope_dim // 2, generator=g, dtype=dtype)
    given = heads.clone()
    n_panels = 160 // kernel.panel + 1
    keys = F.pad(k, (0, 0, 0, n_panels * kernel.panel - 160)).unflatten(2, (n_panels, -1))
    keys, values = keys.transpose(3, 4).contiguous(), v.clone()
    turns = torch.polar(torch.ones_like(angles), angles)
    found = kernel(given, turns, n_seen, 151, keys, values).view(n_rows, n_heads, head_dim)

    qk = heads[:, : n_heads + n_kv].clone()
    if scale is not None:
        qk = unit(qk) * scale
    pairs = torch.view_as_complex(qk[..., :rope_dim].unflatten(-1, (-1, 2)).contiguous())
    qk[..., :rope_dim] = torch.view_as_real(pairs * turns).flatten(-2)
    for row, seen in enumerate(n_seen.tolist()):
        slot = seen if window is None else seen % window
        n_slots = seen + 1 if window is None else min(seen + 1, window)
        k[row, :, slot] = qk[row, n_heads:]
        v[row, :, slot] = heads[row, n_heads + n_kv : n_heads + 2 * n_kv]
        for head in range(n_heads):
            mine = head // n_queries
            weights = (k[row, mine, :n_slots] @ qk[row, head]).softmax(0)
            want = weights @ v[row, mine, :n_slots]
            if gated:
                want = want * heads[row, n_heads + 2 * n_kv + head].sigmoid()
            assert_close(found[row, head], want)
        assert torch.equal(values[row], v[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_latents(dtype, g):
    n_seen = torch.tensor([0, 70, 31])
    q = torch.randn(3, 11, 24, generator=g, dtype=dtype)
    kept = torch.randn(4, 80, 24, generator=g, dtype=dtype)
    found = latent_attention(q, kept, 18, n_seen, 71)
    for row, seen in enumerate(n_seen.tolist()):
        slots = kept[row, : seen + 1]
        assert_close(found[row], (q[row] @ slots.T).softmax(-1) @ slots[:, :18])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 9])
@pytest.mark.parametrize("v_dim", [128, 20])
@pytest.mark.parametrize("simple", [False, True])
def test_delta_rule(head_dim, v_dim, simple, dtype, n_threads, g):
    """Three tokens of two rows, by the recurrence as defined."""
    n_heads, n_values, n_taps, n_rows, eps = 2, 3, 4, 2, 1e-6
    v_heads = n_heads * n_values
    n_qk = 2 * n_heads * head_dim
    n_channels = n_qk + v_heads * v_dim

    def draw(*size):
        return torch.randn(*size, generator=g, dtype=dtype)

    taps, decay, dt_bias = draw(n_taps, n_channels), -draw(v_heads).exp(), draw(v_heads)
    width = n_channels + v_heads * (2 + v_dim)
    gate_at, b_at, a_at = n_channels, width - 2 * v_heads, width - v_heads
    kernel = DeltaRuleKernel(
        taps, n_heads=n_heads, v_heads=v_heads, head_dim=head_dim, v_dim=v_dim,
        taps=None if simple else taps, decay=None if simple else decay,
        dt_bias=None if simple else dt_bias, length_eps=eps, norm_eps=EPS, gated=not simple,
        doubled=simple, places={"g": gate_at, "b": b_at, "a": a_at},
    )  # fmt: skip
    tail = torch.zeros(5, n_taps - 1, n_channels, dtype=dtype)  # more rows than are live
    memory = torch.zeros(5, n_heads, head_dim, n_values * v_dim, dtype=dtype)
    state = torch.zeros(n_rows, v_heads, head_dim, v_dim, dtype=dtype)
    inputs = [torch.zeros(n_rows, n_channels, dtype=dtype)] * (n_taps - 1)
    for _ in range(3):
        x = draw(n_rows, width)
        found = kernel(x, tail, memory)
        inputs.append(x[:, :n_channels])
        window = torch.stack(inputs[-n_taps:], dim=1)
        mixed = F.silu(x[:, :n_channels] if simple else (window * taps).sum(1))
        qk = mixed[:, :n_qk].view(n_rows, n_heads, 2, head_dim)
        qk = qk / (qk.pow(2).sum(-1, keepdim=True) + eps).sqrt()
        q, k = qk.repeat_interleave(n_values, dim=1).unbind(2)  # (B, H, K)
        v = mixed[:, n_qk:].view(n_rows, v_heads, v_dim)
        b = x[:, b_at : b_at + v_heads].sigmoid() * (2 if simple else 1)
        a = torch.ones_like(b)
        if not simple:
            a = (F.softplus(x[:, a_at:] + dt_bias) * decay).exp()
        state = a[..., None, None] * state
        error = b[..., None] * (v - torch.einsum("bhkv,bhk->bhv", state, k))
        state = state + torch.einsum("bhk,bhv->bhkv", k, error)
        want = unit(torch.einsum("bhkv,bhk->bhv", state, q) / head_dim**0.5)
        if not simple:
            want = want * F.silu(x[:, gate_at:b_at]).view_as(want)
        assert_close(found, want.flatten(1))
    kept = memory[:n_rows].unflatten(3, (n_values, v_dim)).transpose(2, 3).flatten(1, 2)
    assert_close(kept, state)


def test_large_and_small_numbers_pass_through_the_activation():
    """exp keeps within what a float can hold; nothing becomes a NaN, and a NaN stays one."""
    x = torch.tensor([[-1e4], [-100.0], [-1e-3], [0.0], [1e-3], [100.0], [1e4]])
    found = ProductKernel(torch.ones(40, 1), None, activation="silu")(x)
    torch.testing.assert_close(found[:, 0], F.silu(x[:, 0]), rtol=1e-6, atol=1e-30)
    x = torch.linspace(-20, 20, 4001)[:, None]
    found = ProductKernel(torch.ones(1, 1), None, activation="silu")(x)[:, 0]
    torch.testing.assert_close(found, F.silu(x.double()).float()[:, 0], rtol=5e-7, atol=0)
    nan = ProductKernel(torch.ones(3, 1), None, activation="silu")(
        torch.tensor([[torch.nan], [1.0]])
    )
    assert nan[0].isnan().all() and nan[1].isfinite().all()


def test_scores_far_apart_do_not_overflow(g):
    q, kept = 1e3 * torch.randn(1, 2, 8, generator=g), torch.randn(1, 40, 8, generator=g)
    found = latent_attention(q, kept, 8, torch.tensor([39]), 40)
    assert_close(found[0], (q[0] @ kept[0].T).softmax(-1) @ kept[0])


def test_calls_from_several_threads_do_not_meet(g):
    """Room that outlives a call belongs to one thread."""
    weights = [torch.randn(200, 50 + i, generator=g) for i in range(4)]
    inputs = [torch.randn(5, 50 + i, generator=g) for i in range(4)]
    kernels = [ProductKernel(weight, None) for weight in weights]
    wrong = []

    def work(i):
        for _ in range(200):
            if not torch.allclose(kernels[i](inputs[i]), inputs[i] @ weights[i].T, atol=1e-3):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- compiling ------------------------------------------------------------------------------------

COPYING = """
import shutil, sys
open({log!r}, 'a').write('.' * ('-o' in sys.argv))
if '-o' in sys.argv: shutil.copyfile({built!r}, sys.argv[sys.argv.index('-o') + 1])
"""
FAILING = "import sys\nif '--version' not in sys.argv: sys.exit('x.cpp:1: error: no such option')"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache folder, and nothing that is known from before; and again afterwards."""
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path))
    forget()
    yield tmp_path / "kernels"
    forget()


@pytest.fixture
def n_compiled(own_cache, tmp_path, monkeypatch):
    """How often a compiler was asked, which copies what was compiled before."""
    log = tmp_path / "log"
    log.touch()
    built = tmp_path / "built.so"
    shutil.copyfile(BUILT, built)
    install(tmp_path / "bin", monkeypatch, COPYING.format(log=str(log), built=str(built)))
    return lambda: len(log.read_text())


def forget():
    library.load.cache_clear()
    library.obstacle.cache_clear()


def install(folder, monkeypatch, text):
    """A compiler of our own, and no other one."""
    folder.mkdir()
    compiler = folder / "c++"
    compiler.write_text(f"#!{sys.executable}\n{text}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_without_a_compiler_the_reason_is_told(own_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "C++ compiler" in obstacle()


def test_what_a_compiler_says_is_told(own_cache, tmp_path, monkeypatch):
    install(tmp_path / "bin", monkeypatch, FAILING)
    assert "error: no such option" in obstacle()
    assert not list(own_cache.rglob("*.so"))


def test_a_library_is_compiled_once(own_cache, n_compiled):
    assert obstacle() is None
    forget()
    assert obstacle() is None
    assert n_compiled() == 1
    assert len(list(own_cache.rglob("*"))) == 2  # the user's folder, and one library in it


def test_what_is_no_library_is_made_anew(own_cache, n_compiled, tmp_path, monkeypatch):
    assert obstacle() is None
    (path,) = own_cache.rglob("*.so")
    damaged = tmp_path / "other" / path.relative_to(tmp_path)  # what is loaded is not read again
    damaged.parent.mkdir(parents=True, mode=0o700)
    damaged.write_bytes(b"truncated")
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "other"))
    forget()
    assert obstacle() is None
    assert n_compiled() == 2 and damaged.stat().st_size > 1000


def test_a_folder_that_others_may_write_to_is_not_used(own_cache, n_compiled):
    assert obstacle() is None
    (path,) = own_cache.rglob("*.so")
    path.parent.chmod(0o777)
    path.unlink()
    path.write_bytes(b"someone else's")
    forget()
    assert obstacle() is None
    assert path.read_bytes() == b"someone else's"
    assert n_compiled() == 2


def test_a_cache_that_cannot_be_written(own_cache, n_compiled):
    own_cache.write_text("a file where a folder should be")
    assert obstacle() is None


def test_a_library_that_is_wrong_is_not_used(own_cache, n_compiled, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    assert "wrong numbers" in obstacle()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of that kind")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
def test_older_processors_compute_the_same(processor, own_cache, monkeypatch, g):
    """With fewer and narrower registers, so other panels and blocks."""
    monkeypatch.setattr(library, "_native", lambda: f"-march={processor}")
    assert obstacle() is None
    test_a_product((130, 33), 9, "swiglu", torch.float32, g)
    test_experts(20, 5, 5, "swiglu", torch.float32, None, g)
    test_attention(12, 40, "full", torch.float32, None, g)
    test_delta_rule(9, 128, False, torch.float32, None, g)


def test_numbers_that_there_are_no_kernels_for():
    assert "bfloat16" in obstacle(torch.bfloat16)
    with pytest.raises(BackendError, match="bfloat16"):
        library.load(torch.bfloat16)
