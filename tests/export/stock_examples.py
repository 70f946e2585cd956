"""Small models of every stock architecture, with the switches that exports translate."""

import torch

from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

ATTENTION = {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
NORMED = ATTENTION | {"qk_norm": "head"}
GATED = NORMED | {"output_gate": True, "rope_frac": 0.5}
DELTA = {"kind": "gated_deltanet", "n_heads": 2, "n_v_heads": 4, "head_dim": 8}
MLA = {
    "kind": "mla", "n_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6, "v_head_dim": 10,
}  # fmt: skip
MLP = {"kind": "mlp", "d_ff": 40}
MOE = {"kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 12}
SHARED = MOE | {"n_shared_experts": 1, "shared_expert_gate": True}
SIGMOID = MOE | {"scores": "sigmoid", "bias_update_rate": 0.01, "routed_scaling_factor": 2.5}
LOOPED = {
    "kind": "looped", "prelude_layers": 0, "core_layers": 2, "coda_layers": 0,
    "state_init": "learned", "state_norm": "plain", "depth": {"kind": "fixed", "steps": 3},
    "halting": {"kind": "gate"},
}  # fmt: skip


def tree(*layers, **settings):
    """A config whose layers are these (sequence mixer, channel mixer) pairs, in order."""
    blocks, motif = {}, []
    for seq, chan in layers:
        pair = {"sequence_mixer": seq, "channel_mixer": chan}
        name = next((n for n, b in blocks.items() if b == pair), f"b{len(blocks)}")
        blocks[name] = pair
        motif.append(name)
    shape = {"vocab_size": 260, "d_model": 32, "n_layers": len(layers), "max_seq_len": 24}
    pattern = {"pattern": motif} if len(blocks) > 1 else {}
    return shape | {"tie_embeddings": False, "blocks": blocks} | pattern | settings


EXAMPLES: dict[str, tuple[str, dict]] = {
    "Llama": ("llama", tree(*[(ATTENTION | {"rope_theta": 500.0}, MLP)] * 2, norm_eps=1e-5)),
    "Qwen2": ("qwen2", tree((ATTENTION | {"bias": True}, MLP), (ATTENTION | {"bias": True}, MLP),
                            tie_embeddings=True)),
    "Qwen2, windows": ("qwen2", tree((ATTENTION | {"window": 5}, MLP), (ATTENTION, MLP))),
    "Llama, biases": ("llama", tree(*[(ATTENTION | {"bias": True, "head_dim": 6}, MLP)] * 2)),
    "Qwen3": ("qwen3", tree(*[(NORMED | {"head_dim": 10}, MLP)] * 2, tie_embeddings=True,
                            scale_embeddings=True)),
    "Qwen3, windows": ("qwen3", tree((NORMED | {"window": 5}, MLP), (NORMED, MLP),
                                     (NORMED | {"window": 5}, MLP))),
    "Qwen3-MoE": ("qwen3_moe", tree((NORMED | {"window": 6}, MOE), (NORMED | {"window": 6}, MLP),
                                    (NORMED | {"window": 6}, MOE))),
    "OLMoE": ("olmoe", tree(*[(ATTENTION | {"qk_norm": "full"}, MOE | {"norm_topk_prob": False})]
                            * 2, tie_embeddings=True)),
    "Mixtral": ("mixtral", tree(*[(ATTENTION | {"window": 7}, MOE)] * 2)),
    "DeepSeek-V3": ("deepseek_v3", tree((MLA, MLP), (MLA, SIGMOID | {"n_shared_experts": 2}),
                                        (MLA, SIGMOID | {"n_shared_experts": 2}))),
    "DeepSeek-V3, dense": ("deepseek_v3", tree(
        *[(MLA | {"q_lora_rank": None, "qk_nope_head_dim": 0, "bias": True}, MLP)] * 2,
        scale_embeddings=True)),
    "DeepSeek-V3, no shared expert": ("deepseek_v3", tree(
        *[(MLA, SIGMOID | {"bias_update_rate": None})] * 2)),
    "Qwen3.5": ("qwen3_5_text", tree((DELTA, MLP), (GATED, MLP), (DELTA, MLP))),
    "Qwen3.5, no gate": ("qwen3_5_text", tree((DELTA | {"decay": "none"}, MLP), (NORMED, MLP))),
    "Qwen3.5, Gated DeltaNet alone": ("qwen3_5_text", tree(*[(DELTA, MLP)] * 2)),
    "Qwen3-Next": ("qwen3_next", tree((DELTA, SHARED), (GATED, SHARED), (DELTA, MLP))),
    "Qwen3-Next, no gates": ("qwen3_next", tree(
        (DELTA | {"decay": "none"}, MOE | {"n_shared_experts": 1}),
        (NORMED, MOE | {"n_shared_experts": 1}))),
    "Qwen3-Next, no shared expert": ("qwen3_next", tree((DELTA, MOE), (GATED, MOE))),
    "HrmText, looped": ("hrm_text", tree(*[(ATTENTION | {"output_gate": True}, MLP)] * 2,
                                         recursion=LOOPED)),
    "HrmText, looped from zeros": ("hrm_text", tree(
        *[(ATTENTION, MLP)] * 2, scale_embeddings=True, tie_embeddings=True, recursion=LOOPED | {
            "state_init": "zeros", "halting": {"kind": "fixed"}, "L_cycles": 2,
            "depth": {"kind": "uniform", "halt_max_steps": 2}})),
    "HrmText, plain": ("hrm_text", tree(*[(ATTENTION | {"output_gate": True}, MLP)] * 2)),
}  # fmt: skip
"""What is special about it -> the architecture that it must go to, and the model."""

LITERAL = [
    "Llama", "Qwen2", "Qwen3, windows", "Qwen3-MoE", "OLMoE", "Mixtral", "DeepSeek-V3", "Qwen3.5",
    "Qwen3.5, Gated DeltaNet alone", "Qwen3-Next",
]  # fmt: skip
"""Those that a stock config says as ours does, so that an import gives the same model back."""


def random_model(settings: dict) -> LanguageModel:
    """A model none of whose tensors has its initial value; decays of about a half, so that the past
    can be felt and sums stay well conditioned."""
    model = build_model(LanguageModelConfig(**settings), seed=0).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("A_log", "dt_bias")):
                tensor.zero_()
            tensor += 0.1 * torch.randn(tensor.shape, generator=g)
    return model
