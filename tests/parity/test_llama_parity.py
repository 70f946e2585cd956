"""Grouped attention and SwiGLU against transformers' Llama."""

import pytest

transformers = pytest.importorskip("transformers")
from parity.mapping import build_pair, compare_decoding, compare_forward_and_gradients


def make_pair(n_kv_heads, tie):
    tree = {
        "vocab_size": 61, "d_model": 24, "n_layers": 2, "tie_embeddings": tie, "norm_eps": 1e-5,
        "blocks": {"full": {
            "sequence_mixer": {
                "kind": "attention", "n_heads": 4, "n_kv_heads": n_kv_heads, "head_dim": 8,
                "rope_theta": 500.0,
            },
            "channel_mixer": {"kind": "mlp", "d_ff": 40},
        }},
    }  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, tie_word_embeddings=tie,
        rms_norm_eps=1e-5, num_attention_heads=4, num_key_value_heads=n_kv_heads, head_dim=8,
        intermediate_size=40, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    return build_pair(tree, transformers.LlamaForCausalLM, config)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [5, 17])
def test_forward_and_gradients(n_kv_heads, length):
    compare_forward_and_gradients(*make_pair(n_kv_heads, tie=False), length=length)


def test_tied_embeddings():
    compare_forward_and_gradients(*make_pair(2, tie=True), length=13)


@pytest.mark.parametrize("pieces", [[5, 1, 1, 3, 1], [1, 1, 1]], ids=str)
def test_cached_decoding(pieces):
    compare_decoding(*make_pair(2, tie=True), pieces=pieces)
