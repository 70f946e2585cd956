"""Latent attention, sigmoid routing with a bias and shared experts against DeepSeek-V3."""

import pytest

transformers = pytest.importorskip("transformers")
from parity.mapping import build_pair, compare_decoding, compare_forward_and_gradients


def make_pair(q_lora_rank=20, bias=False, decode_backend="absorbed", nope=8, norm_topk_prob=True):
    mla = {
        "kind": "mla", "n_heads": 3, "q_lora_rank": q_lora_rank, "kv_lora_rank": 16,
        "qk_nope_head_dim": nope, "qk_rope_head_dim": 6, "v_head_dim": 10, "bias": bias,
        "decode_backend": decode_backend,
    }  # fmt: skip
    moe = {
        "kind": "moe", "n_experts": 6, "n_active_experts": 3, "d_expert": 14,
        "n_shared_experts": 2, "scores": "sigmoid", "bias_update_rate": 0.001,
        "routed_scaling_factor": 2.5, "norm_topk_prob": norm_topk_prob,
    }  # fmt: skip
    tree = {
        # The norms of the stream and those of the latents have different epsilons on purpose.
        "vocab_size": 61, "d_model": 24, "n_layers": 3, "tie_embeddings": False, "norm_eps": 1e-4,
        "pattern": {"block": "dense", "at": [0], "rest": "sparse"},
        "blocks": {
            "dense": {"sequence_mixer": mla, "channel_mixer": {"kind": "mlp", "d_ff": 40}},
            "sparse": {"sequence_mixer": mla, "channel_mixer": moe},
        },
    }  # fmt: skip
    config = transformers.DeepseekV3Config(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, tie_word_embeddings=False,
        rms_norm_eps=1e-4, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=q_lora_rank,
        kv_lora_rank=16, qk_nope_head_dim=nope, qk_rope_head_dim=6, v_head_dim=10,
        attention_bias=bias, rope_interleave=True, intermediate_size=40, moe_intermediate_size=14,
        n_routed_experts=6, num_experts_per_tok=3, n_shared_experts=2, n_group=1, topk_group=1,
        norm_topk_prob=norm_topk_prob, routed_scaling_factor=2.5, first_k_dense_replace=1,
        num_mtp_layers=0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    return build_pair(tree, transformers.DeepseekV3ForCausalLM, config)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"q_lora_rank": None},
        {"bias": True},
        {"nope": 0, "bias": True},
        {"norm_topk_prob": False},
    ],
    ids=str,
)
def test_forward_and_gradients(settings):
    compare_forward_and_gradients(*make_pair(**settings), length=17)


@pytest.mark.parametrize("pieces", [[5, 1, 1, 3, 1], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("decode_backend", ["absorbed", "expanded"])
@pytest.mark.parametrize("settings", [{}, {"nope": 0, "bias": True}], ids=str)
def test_cached_decoding(settings, decode_backend, pieces):
    pair = make_pair(**settings, decode_backend=decode_backend)
    compare_decoding(*pair, pieces=pieces)
