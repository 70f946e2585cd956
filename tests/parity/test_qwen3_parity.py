"""Attention with QK-norm per head against transformers' Qwen3."""

import pytest

transformers = pytest.importorskip("transformers")
from parity.mapping import build_pair, compare_decoding, compare_forward_and_gradients


@pytest.fixture
def pair():
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": 2, "tie_embeddings": False,
        "blocks": {"full": {
            "sequence_mixer": {
                "kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 10,
                "rope_theta": 1_000_000.0, "qk_norm": "head",
            },
            "channel_mixer": {"kind": "mlp", "d_ff": 40},
        }},
    }  # fmt: skip
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, tie_word_embeddings=False,
        rms_norm_eps=1e-6, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        intermediate_size=40, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )  # fmt: skip
    return build_pair(tree, transformers.Qwen3ForCausalLM, config)


@pytest.mark.parametrize("length", [5, 17])
def test_forward_and_gradients(pair, length):
    compare_forward_and_gradients(*pair, length=length)


@pytest.mark.parametrize("pieces", [[5, 1, 1, 3, 1], [1, 1, 1]], ids=str)
def test_cached_decoding(pair, pieces):
    compare_decoding(*pair, pieces=pieces)
