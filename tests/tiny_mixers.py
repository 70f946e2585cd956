"""The smallest settings of every mixer, with the variants that take another path."""

D_MODEL = 16

SEQUENCE = {
    "attention": {
        "plain": {"n_heads": 2, "head_dim": 4},
        "grouped": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "qk_norm": "head"},
        "window": {"n_heads": 2, "head_dim": 4, "window": 3},
        "gate": {"n_heads": 2, "head_dim": 8, "output_gate": True, "rope_frac": 0.25},
        "full norm": {"n_heads": 2, "head_dim": 4, "qk_norm": "full", "bias": True},
        "no positions": {"n_heads": 2, "head_dim": 4, "rope_frac": 0.0, "backend": "reference"},
    },
    "gated_deltanet": {
        "plain": {"n_heads": 2, "head_dim": 4},
        "more values": {"n_heads": 1, "n_v_heads": 2, "head_dim": 4, "v_head_dim": 6},
        "no convolution": {"n_heads": 2, "head_dim": 4, "conv_size": 0, "output_gate": False},
        "no decay": {"n_heads": 2, "head_dim": 4, "decay": "none", "allow_neg_eigval": True},
    },
    "mla": {
        "plain": {
            "n_heads": 2, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2,
            "v_head_dim": 3,
        },
        "no content": {
            "n_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 0, "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
        "query latent": {
            "n_heads": 2, "q_lora_rank": 5, "kv_lora_rank": 6, "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 2, "v_head_dim": 4, "bias": True,
        },
    },
}  # fmt: skip

CHANNEL = {
    "mlp": {"plain": {"d_ff": 24}},
    "moe": {
        "plain": {"n_experts": 4, "n_active_experts": 2, "d_expert": 8},
        "shared": {
            "n_experts": 4, "n_active_experts": 1, "d_expert": 8, "norm_topk_prob": False,
            "n_shared_experts": 1, "shared_expert_gate": True, "bias_update_rate": 0.01,
        },
        "bias": {
            "n_experts": 6, "n_active_experts": 2, "d_expert": 8, "scores": "sigmoid",
            "bias_update_rate": 0.01, "n_shared_experts": 1, "activation": "silu",
            "z_loss_weight": 0.001,
        },
    },
}  # fmt: skip


def cases(table):
    """(kind, variant) pairs, for parametrize."""
    return [(kind, variant) for kind, variants in table.items() for variant in variants]
