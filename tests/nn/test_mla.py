"""Multi-head latent attention: an oracle head by head, the contract, both decode backends."""

import math

import pytest
import torch

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError
from mixlab.nn.sequence_mixers.mla import MLAConfig
from mixlab.ops.latent_attention import latent_attention
from mixlab.ops.packing import Packing

D_MODEL = 12
BASE = {
    "n_heads": 3, "q_lora_rank": 7, "kv_lora_rank": 5, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 6, "v_head_dim": 8,
}  # fmt: skip
VARIANTS = {
    "low-rank queries": {},
    "direct queries": {"q_lora_rank": None},
    "no content keys": {"qk_nope_head_dim": 0},
    "biases": {"bias": True},
}


@pytest.fixture(params=VARIANTS)
def cfg(request):
    return MLAConfig(**{**BASE, **VARIANTS[request.param]})


def build(cfg, seed=0):
    torch.manual_seed(seed)
    mixer = cfg.build(D_MODEL).double()
    for parameter in mixer.parameters():  # norms and biases away from 1 and 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer


def tokens(batch, length, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, D_MODEL, generator=g, dtype=torch.float64)


def oracle(mixer, x):
    """One head, one query, one key at a time; complex numbers turn the pairs."""
    cfg, w = mixer.cfg, {name: p.detach() for name, p in mixer.named_parameters()}

    def norm(v, weight):
        return weight * v / torch.sqrt(v.square().mean() + cfg.norm_eps)

    def turn(v, position):
        pairs = torch.view_as_complex(v.reshape(-1, 2).clone())
        i = torch.arange(len(pairs), dtype=torch.float64)
        angle = position * cfg.rope_theta ** (-2 * i / cfg.qk_rope_head_dim)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()

    def linear(name, v):
        return w[f"{name}.weight"] @ v + w.get(f"{name}.bias", 0)

    def query(v):
        if cfg.q_lora_rank is None:
            return linear("q_proj", v)
        return linear("q_b_proj", norm(linear("q_a_proj", v), w["q_a_layernorm.weight"]))

    n, r = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim
    rows = []
    for t in range(len(x)):
        q = query(x[t]).view(cfg.n_heads, n + r)
        heads = []
        for h in range(cfg.n_heads):
            scores, values = [], []
            for s in range(t + 1):
                down = linear("kv_a_proj_with_mqa", x[s])
                latent = norm(down[: cfg.kv_lora_rank], w["kv_a_layernorm.weight"])
                kv = linear("kv_b_proj", latent).view(cfg.n_heads, n + cfg.v_head_dim)[h]
                rotary = turn(q[h, n:], t) @ turn(down[cfg.kv_lora_rank :], s)
                scores.append((q[h, :n] @ kv[:n] + rotary) / math.sqrt(n + r))
                values.append(kv[n:])
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        rows.append(linear("o_proj", torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_matches_the_definition_head_by_head(cfg, backend):
    mixer = build(cfg.model_copy(update={"backend": backend}))
    x = tokens(1, 7)
    # Float64 sums in another order.
    torch.testing.assert_close(mixer(x).y[0], oracle(mixer, x[0]), rtol=1e-10, atol=1e-12)


def test_is_exactly_causal(cfg):
    x = tokens(1, 9).requires_grad_()
    build(cfg)(x).y[0, 4].sum().backward()
    assert x.grad[0, :5].any(dim=-1).all(), "some earlier input has no influence"
    assert not x.grad[0, 5:].any(), "a later input has influence"


@pytest.mark.parametrize("decode_backend", ["expanded", "absorbed"])
@pytest.mark.parametrize("prefill", [0, 1, 5])
def test_step_by_step_equals_all_at_once(cfg, decode_backend, prefill):
    mixer = build(cfg.model_copy(update={"decode_backend": decode_backend}))
    x = tokens(2, 9)
    state, steps = mixer.initial_state(2, x.device, x.dtype), []
    pieces = ([x[:, :prefill]] if prefill else []) + list(x[:, prefill:].split(1, dim=1))
    for piece in pieces:
        out = mixer(piece, state)
        state = out.state
        steps.append(out.y)
    torch.testing.assert_close(torch.cat(steps, dim=1), mixer(x).y, rtol=1e-10, atol=1e-12)
    assert state.latent.shape == (2, 9, cfg.kv_lora_rank), "the state is the latent, unexpanded"
    assert state.k_rope.shape == (2, 9, cfg.qk_rope_head_dim)


@pytest.mark.parametrize("n_queries", [1, 4, 6])
def test_absorbed_equals_expanded_with_gradients(cfg, n_queries):
    n_keys = 6
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    inputs = {
        "q_nope": draw(2, n_queries, cfg.n_heads, cfg.qk_nope_head_dim),
        "q_rope": draw(2, n_queries, cfg.n_heads, cfg.qk_rope_head_dim),
        "latent": draw(2, n_keys, cfg.kv_lora_rank),
        "k_rope": draw(2, n_keys, cfg.qk_rope_head_dim),
        "weight": draw(cfg.n_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim), cfg.kv_lora_rank),
    }
    packing = None
    if n_queries == n_keys:
        packing = Packing(torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]]))
    results = []
    for backend in ("expanded", "absorbed"):
        y = latent_attention(**inputs, scale=0.3, packing=packing, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_packed_documents_equal_documents_alone(cfg):
    mixer = build(cfg)
    x = tokens(1, 9)
    y = mixer(x, packing=Packing(torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2]]))).y
    alone = [mixer(piece).y for piece in x.split([3, 1, 5], dim=1)]
    # Positions differ by a constant, so the turned pairs round differently.
    torch.testing.assert_close(y, torch.cat(alone, dim=1), rtol=1e-10, atol=1e-11)


def test_rows_of_a_batch_are_independent(cfg):
    mixer = build(cfg)
    x = tokens(3, 5)
    torch.testing.assert_close(mixer(x).y[1:2], mixer(x[1:2]).y, rtol=1e-12, atol=1e-13)


def test_gradient_reaches_every_parameter(cfg):
    mixer = build(cfg)
    mixer(tokens(2, 5)).y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


def test_formulas_match_the_module(cfg):
    mixer = build(cfg)
    assert cfg.n_params(D_MODEL) == sum(p.numel() for p in mixer.parameters())
    state = mixer(tokens(1, 7), mixer.initial_state(1, torch.device("cpu"), torch.float64)).state
    assert cfg.state_bytes(D_MODEL, 7, 8) == sum(t.numel() * t.itemsize for t in state)
    weights = sum(p.numel() for name, p in mixer.named_parameters() if p.ndim == 2)
    mixing = 2 * cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim) * (1 + 2 + 3) / 3
    assert cfg.flops_per_token(D_MODEL, 3) == pytest.approx(2 * weights + mixing)


def test_size_of_the_published_attention_mlp_layer():
    """256 wide, 4 heads, rank 128, rope 64, no content keys, values 64, biases on."""
    cfg = MLAConfig(
        n_heads=4, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=0, qk_rope_head_dim=64,
        v_head_dim=64, bias=True,
    )  # fmt: skip
    assert cfg.n_params(256) == 213_824
    layer = cfg.n_params(256) + 3 * 256 * 1024 + 2 * 256
    assert 49_152 * 256 + 3 * layer + 256 == 15_585_472


def test_half_precision_stays_near_float64(cfg):
    mixer = build(cfg)
    x = tokens(2, 9)
    want = mixer(x).y
    mixer, x = mixer.bfloat16(), x.bfloat16()
    state, steps = mixer.initial_state(2, x.device, x.dtype), []
    for piece in x.split(1, dim=1):
        out = mixer(piece, state)
        state = out.state
        steps.append(out.y)
    for y in (mixer(x).y, torch.cat(steps, dim=1)):
        assert y.dtype == torch.bfloat16
        # Five products in a row, each rounded to 8 bits of mantissa.
        assert (y - want).abs().max() < 0.06 * want.abs().max()


def test_odd_rotary_width_is_refused():
    with pytest.raises(ConfigError, match=r"qk_rope_head_dim = 5: expected an even number"):
        decode(MLAConfig, {**BASE, "qk_rope_head_dim": 5})


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ConfigError, match="q_lora_rank"):
        decode(MLAConfig, {**BASE, "q_lora_rank": 0})
