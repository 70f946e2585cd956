"""QK-norm over all heads at once and softmax routing against transformers' OLMoE."""

import pytest

transformers = pytest.importorskip("transformers")
from parity.mapping import build_pair, compare_decoding, compare_forward_and_gradients


@pytest.fixture(params=["grouped", "loop"])
def pair(request):
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": 2, "tie_embeddings": False, "norm_eps": 1e-5,
        "blocks": {"full": {
            "sequence_mixer": {
                "kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6,
                "qk_norm": "full", "norm_eps": 1e-5,
            },
            "channel_mixer": {
                "kind": "moe", "n_experts": 6, "n_active_experts": 3, "d_expert": 14,
                "norm_topk_prob": False, "backend": request.param,
            },
        }},
    }  # fmt: skip
    config = transformers.OlmoeConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, tie_word_embeddings=False,
        rms_norm_eps=1e-5, num_attention_heads=4, num_key_value_heads=2, intermediate_size=14,
        num_experts=6, num_experts_per_tok=3, norm_topk_prob=False, clip_qkv=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, pad_token_id=None,
    )  # fmt: skip
    return build_pair(tree, transformers.OlmoeForCausalLM, config)


@pytest.mark.parametrize("length", [5, 17])
def test_forward_and_gradients(pair, length):
    compare_forward_and_gradients(*pair, length=length)


@pytest.mark.parametrize("pieces", [[5, 1, 1, 3, 1], [1, 1, 1]], ids=str)
def test_cached_decoding(pair, pieces):
    compare_decoding(*pair, pieces=pieces)
