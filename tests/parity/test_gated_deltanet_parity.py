"""Our Gated DeltaNet beside transformers' Qwen3-Next and Qwen3.5 layers, and their and FLA's rules.

Same weights, float32: outputs and every gradient agree, at odd lengths, and token by token.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the stock layers come from transformers")

from transformers.utils import import_utils

# Where flash-linear-attention is installed the stock layers take its kernels, which need a GPU.
import_utils.is_flash_linear_attention_available = lambda: False

from parity.gated_deltanet_weights import split_stock
from transformers import DynamicCache
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.ops.gated_delta_rule import gated_delta_rule

D_MODEL, N_KEYS, N_HEADS, K_DIM = 24, 2, 4, 8
SIZES = {"n_keys": N_KEYS, "n_heads": N_HEADS, "k_dim": K_DIM}
LENGTHS = [1, 7, 65, 130]
RULES = ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"]


def assert_close(got, want, what=""):
    """Within 1e-5 of the largest entry: a sum's rounding goes by its terms, not by its value."""
    error, size = (got - want).abs().max(), want.abs().max()
    assert error <= 1e-5 * size, f"{what}: off by {error:.1e} where entries go up to {size:.1e}"


def stock_pair(name):
    """A stock layer with random weights, and its config."""
    shared = {
        "hidden_size": D_MODEL, "num_hidden_layers": 1, "layer_types": ["linear_attention"],
        "linear_num_key_heads": N_KEYS, "linear_num_value_heads": N_HEADS,
        "linear_key_head_dim": K_DIM, "linear_value_head_dim": K_DIM,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 16,
    }  # fmt: skip
    if name == "qwen3_next":
        config = Qwen3NextConfig(**shared)
        layer = qwen3_next.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    else:
        config = Qwen3_5TextConfig(**shared)
        layer = Qwen3_5GatedDeltaNet(config, layer_idx=0)
    g = torch.Generator().manual_seed(0)
    for p in layer.parameters():  # none keeps an initial value that would hide a mix-up
        p.data = torch.randn(p.shape, generator=g) * 0.4
    return layer, config


@pytest.fixture(params=["qwen3_next", "qwen3_5"])
def pair(request):
    stock, config = stock_pair(request.param)
    cfg = GatedDeltaNetConfig(n_heads=N_KEYS, n_v_heads=N_HEADS, head_dim=K_DIM)
    ours = cfg.build(D_MODEL)
    ours.load_state_dict(
        split_stock(stock.state_dict(), **SIZES)
    )  # strict: every name is accounted for
    return ours, stock, config


def make_x(n_tokens, n_batch=2):
    return torch.randn(n_batch, n_tokens, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_layer_output_and_every_gradient(pair, n_tokens):
    ours, stock, _ = pair
    x, x_stock = (make_x(n_tokens).requires_grad_() for _ in range(2))
    y, y_stock = ours(x).y, stock(x_stock)
    assert_close(y, y_stock)
    reading = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * reading).sum().backward()
    (y_stock * reading).sum().backward()
    want = split_stock({name: p.grad for name, p in stock.named_parameters()}, **SIZES)
    got = {name: p.grad for name, p in ours.named_parameters()} | {"x": x.grad}
    for name, gradient in (want | {"x": x_stock.grad}).items():
        assert_close(got[name], gradient, name)


def test_cached_decoding(pair):
    """Prefill of an odd length, then single tokens; both caches carry on from there."""
    ours, stock, config = pair
    x = make_x(40)
    cache = DynamicCache(config=config)
    state = ours.initial_state(2, x.device, x.dtype)
    whole = ours(x).y
    start = 0
    for size in [9, *[1] * 31]:
        piece = x[:, start : start + size]
        y, state = ours(piece, state)
        with torch.no_grad():
            want = stock(piece, cache_params=cache)
        assert_close(y, want)
        assert_close(y, whole[:, start : start + size])
        start += size
    assert_close(state.memory, cache.get_recurrent_state(0))


def rule_inputs(n_tokens, n_keys):
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 2, n_tokens, n_keys, 8, generator=g)
    v = torch.randn(2, n_tokens, 4, 6, generator=g)
    log_a, b = torch.rand(2, 2, n_tokens, 4, generator=g)
    return q, k, v, -log_a, b, torch.randn(2, 4, 8, 6, generator=g)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize(
    "rule", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"]
)
@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_rule_is_that_of_transformers(backend, rule, n_tokens):
    q, k, v, log_a, b, state = rule_inputs(n_tokens, n_keys=2)
    want, want_state = getattr(qwen3_next, rule)(
        q, k, v, log_a, b,
        initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    got = gated_delta_rule(
        q=q, k=k, v=v, log_a=log_a, b=b, state=state, normalize_qk=True, backend=backend
    )
    assert_close(got.o, want)
    assert_close(got.state, want_state)


@pytest.fixture(scope="module")
def fla_naive():
    """FLA's own plain forms, loaded from their file: the package itself needs Triton."""
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("flash-linear-attention is not installed")
    if importlib.util.find_spec("einops") is None:
        pytest.skip("einops, which FLA's plain forms use, is not installed")
    path = Path(next(iter(spec.submodule_search_locations)), "ops/gated_delta_rule/naive.py")
    naive_spec = importlib.util.spec_from_file_location("fla_gated_delta_rule_naive", path)
    module = importlib.util.module_from_spec(naive_spec)
    sys.modules[naive_spec.name] = module
    naive_spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_rule_is_that_of_fla(fla_naive, backend, n_tokens):
    q, k, v, log_a, b, state = rule_inputs(n_tokens, n_keys=4)
    k = torch.nn.functional.normalize(k, dim=-1)
    got = gated_delta_rule(q=q, k=k, v=v, log_a=log_a, b=b, state=state, backend=backend)
    for form in ("naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"):
        o, last = getattr(fla_naive, form)(
            q=q, k=k, v=v, beta=b, g=log_a, initial_state=state, output_final_state=True
        )
        assert_close(got.o, o)
        assert_close(got.state, last)
