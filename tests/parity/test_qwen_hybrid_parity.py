"""Whole hybrids against transformers' Qwen3-Next and Qwen3.5: Gated DeltaNet and gated attention.

Their norms multiply by 1 + w, and their attention keeps query and gate of a head in one projection;
both are the same function with the weights written in another way.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers.utils import import_utils

# Where flash-linear-attention is installed the stock layers take its kernels, which need a GPU.
import_utils.is_flash_linear_attention_available = lambda: False

from parity.mapping import assert_near, moves_of, our_gradients, tokens, unstacked
from transformers import DynamicCache
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextForCausalLM

from mixlab.export.moves import to_ours
from mixlab.nn.language_model import LanguageModelConfig, build_model

V, D, HEADS, KV_HEADS, HEAD_DIM, D_FF = 61, 24, 4, 2, 32, 40
KINDS = ["linear", "full", "linear"]
MLP = {"kind": "mlp", "d_ff": D_FF}
MOE = {
    "kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 12, "n_shared_experts": 1,
    "shared_expert_gate": True, "aux_loss_weight": 0.0,
}  # fmt: skip


def our_config(channel):
    attention = {
        "kind": "attention", "n_heads": HEADS, "n_kv_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "rope_frac": 0.25, "qk_norm": "head", "output_gate": True,
    }  # fmt: skip
    delta = {"kind": "gated_deltanet", "n_heads": 2, "n_v_heads": 4, "head_dim": 8}
    return LanguageModelConfig(
        vocab_size=V, d_model=D, n_layers=3, tie_embeddings=False, pattern=KINDS,
        blocks={
            "linear": {"sequence_mixer": delta, "channel_mixer": channel},
            "full": {"sequence_mixer": attention, "channel_mixer": channel},
        },
    )  # fmt: skip


def stock_model(variant):
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    shared = {
        "vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "intermediate_size": D_FF,
        "layer_types": [f"{kind}_attention" for kind in KINDS], "head_dim": HEAD_DIM,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "tie_word_embeddings": False,
    }  # fmt: skip
    if variant == "qwen3_5":
        config = Qwen3_5TextConfig(**shared, rope_parameters=rope | {"mrope_section": [2, 1, 1]})
        kind = Qwen3_5ForCausalLM
    else:
        config = Qwen3NextConfig(
            **shared, rope_parameters=rope, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=12, shared_expert_intermediate_size=12, norm_topk_prob=True,
            mlp_only_layers=[] if variant == "qwen3_next with experts" else [0, 1, 2],
        )  # fmt: skip
        kind = Qwen3NextForCausalLM
    config._attn_implementation = config._experts_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the class's own initial weights
        model = kind(config).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():  # none keeps an initial value that would hide a mix-up
        for name, p in model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                p.zero_()  # a decay of about a half, which lets the past be felt
            p += 0.05 * torch.randn(p.shape, generator=g)
    return model


@pytest.fixture(params=["qwen3_next", "qwen3_next with experts", "qwen3_5"])
def pair(request):
    stock = stock_model(request.param)
    channel = MOE if request.param == "qwen3_next with experts" else MLP
    ours = build_model(our_config(channel), seed=0).eval()
    ours.load_state_dict(to_ours(unstacked(stock.state_dict()), moves_of(ours, stock)))  # strict
    return ours, stock


@pytest.mark.parametrize("length", [3, 7, 33])
def test_forward_and_every_gradient(pair, length):
    ours, stock = pair
    inputs = tokens(V, length)
    got, want = ours(inputs).logits, stock(input_ids=inputs, use_cache=False).logits
    assert_near(got, want, "logits")
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    (got * direction).sum().backward()
    (want * direction).sum().backward()
    reference = our_gradients(ours, stock)
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert not reference[name].any()
        else:
            assert_near(parameter.grad, reference[name], f"gradient of {name}")


@torch.no_grad()
def test_cached_decoding(pair):
    ours, stock = pair
    state, cache = ours.initial_state(2), DynamicCache(config=stock.config)
    for piece in tokens(V, 14).split([9, 1, 1, 1, 1, 1], dim=1):
        out = ours(piece, state)
        state = out.state
        want = stock(input_ids=piece, past_key_values=cache, use_cache=True).logits
        assert_near(out.logits, want, "logits")
