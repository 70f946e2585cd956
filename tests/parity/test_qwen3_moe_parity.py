"""Normalised softmax routing, and dense layers between sparse ones, against Qwen3-MoE."""

import pytest

transformers = pytest.importorskip("transformers")
from parity.mapping import build_pair, compare_decoding, compare_forward_and_gradients


@pytest.fixture(params=[True, False], ids=["normalised", "not normalised"])
def pair(request):
    attention = {
        "kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "qk_norm": "head",
    }  # fmt: skip
    moe = {
        "kind": "moe", "n_experts": 5, "n_active_experts": 2, "d_expert": 14,
        "norm_topk_prob": request.param,
    }  # fmt: skip
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": 4, "tie_embeddings": False,
        "pattern": ["dense", "sparse"],
        "blocks": {
            "dense": {"sequence_mixer": attention, "channel_mixer": {"kind": "mlp", "d_ff": 40}},
            "sparse": {"sequence_mixer": attention, "channel_mixer": moe},
        },
    }  # fmt: skip
    config = transformers.Qwen3MoeConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=4, tie_word_embeddings=False,
        rms_norm_eps=1e-6, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=40, moe_intermediate_size=14, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=request.param, decoder_sparse_step=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    return build_pair(tree, transformers.Qwen3MoeForCausalLM, config)


@pytest.mark.parametrize("length", [7, 17])
def test_forward_and_gradients(pair, length):
    compare_forward_and_gradients(*pair, length=length)


@pytest.mark.parametrize("pieces", [[5, 1, 1, 3, 1], [1, 1, 1]], ids=str)
def test_cached_decoding(pair, pieces):
    compare_decoding(*pair, pieces=pieces)
