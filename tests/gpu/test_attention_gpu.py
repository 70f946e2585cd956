"""The attention kernels of a GPU against the definition in float32, and in compiled blocks."""

import pytest
import torch

from mixlab.ops.attention import attention, pick_backend
from mixlab.ops.packing import Packing

pytestmark = pytest.mark.gpu

LENGTHS = (1, 7, 64, 65, 200)


def leaves(n_rows, n_tokens, n_heads, n_kv, width, seed=0):
    g = torch.Generator("cuda").manual_seed(seed)
    made = {}
    for name, heads in (("q", n_heads), ("k", n_kv), ("v", n_kv)):
        x = torch.randn(n_rows, n_tokens, heads, width, generator=g, device="cuda")
        made[name] = x.bfloat16().requires_grad_()
    return made


def documents(n_rows, n_tokens, seed=0):
    ends = torch.rand(n_rows, n_tokens, generator=torch.Generator().manual_seed(seed)) < 0.05
    return ends.cumsum(1).to(torch.int32)


def run(inputs, backend, **options):
    """Output and gradients; of the definition in float32."""
    wide = backend == "reference"
    x = {n: t.detach().float() if wide else t.detach() for n, t in inputs.items()}
    x = {n: t.requires_grad_() for n, t in x.items()}
    y = attention(**x, scale=x["q"].shape[-1] ** -0.5, backend=backend, **options)
    weight = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
    (y.float() * weight).sum().backward()
    return {"y": y.detach(), **{n: t.grad for n, t in x.items()}}


def assert_close(got, want):
    for name, expected in want.items():
        scale = expected.abs().max().clamp(min=0.1)  # a lone key has no gradient to speak of
        error = (got[name].float() - expected).abs().max() / scale
        assert error < 2e-2, f"{name}: {error:.1e}"  # bfloat16 has 8 bits


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("window", [None, 1, 16])
@pytest.mark.parametrize("n_kv", [4, 2])
def test_flash_over_documents(n_tokens, window, n_kv):
    inputs = leaves(3, n_tokens, 4, n_kv, 64)
    packing = Packing(documents(3, n_tokens)).to(torch.device("cuda"))
    options = {"window": window, "packing": packing}
    assert_close(run(inputs, "flash", **options), run(inputs, "reference", **options))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("backend", ["flash", "auto"])
def test_whole_rows(backend, n_tokens, width):
    inputs = leaves(2, n_tokens, 4, 4, width)
    assert_close(run(inputs, backend), run(inputs, "reference"))


def test_slices_of_a_joined_product():
    """Queries, keys and values may be views into one tensor."""
    g = torch.Generator("cuda").manual_seed(0)
    joined = torch.randn(2, 96, 3 * 4 * 64, generator=g, device="cuda").bfloat16()
    q, k, v = (x.unflatten(-1, (4, 64)) for x in joined.chunk(3, dim=-1))
    inputs = {"q": q, "k": k, "v": v}
    for backend in ("sdpa", "flash"):
        assert_close(run(inputs, backend), run(inputs, "reference"))


def test_a_document_knows_nothing_of_its_neighbours():
    inputs = leaves(1, 90, 2, 2, 64)
    ids = torch.zeros(1, 90, dtype=torch.int32)
    ids[:, 30:] = 1
    packing = Packing(ids).to(torch.device("cuda"))
    poisoned = {n: t.detach().clone() for n, t in inputs.items()}
    for t in poisoned.values():
        t[:, :30] = torch.nan
    got = [run(x, "flash", packing=packing) for x in (inputs, poisoned)]
    for name in got[0]:
        assert torch.equal(got[0][name][:, 30:], got[1][name][:, 30:]), name


def test_auto_is_the_rule_that_docs_give():
    q = torch.empty(2, 32, 4, 64, device="cuda", dtype=torch.bfloat16)
    packed = Packing(documents(2, 32)).to(q.device)
    assert pick_backend("auto", q, q, q, None, None) == "sdpa"
    assert pick_backend("auto", q, q, q, None, packed) == "flash"
    assert pick_backend("auto", q, q, q, 8, None) == "flash"
    wide = q.float()
    assert pick_backend("auto", wide, wide, wide, None, packed) == "sdpa"


def test_compiled_without_breaks_or_recompilation():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(attention, fullgraph=True)
    inputs = leaves(3, 128, 4, 4, 64)
    for seed in range(4):  # other numbers of documents every time
        packing = Packing(documents(3, 128, seed)).to(torch.device("cuda"))
        packing.prepare({None})
        y = compiled(**inputs, scale=0.125, packing=packing)
        y.float().square().sum().backward()
        want = run(inputs, "reference", packing=packing)["y"]
        assert (y.float() - want).abs().max() < 2e-2 * want.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
