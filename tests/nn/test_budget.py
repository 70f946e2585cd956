"""Parameters, FLOPs and state by formula against the built module."""

import pytest
import torch
from tiny_mixers import CHANNEL, D_MODEL, SEQUENCE, cases
from torch.utils.flop_counter import FlopCounterMode

from mixlab.core.config import decode
from mixlab.nn.budget import model_budget, state_bytes, training_memory_bytes
from mixlab.nn.channel_mixers import CHANNEL_MIXERS
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS

T, VOCAB = 12, 37


def model_config(sequence=("attention", "plain"), channel=("mlp", "plain"), **changes):
    block = {
        "sequence_mixer": {"kind": sequence[0], **SEQUENCE[sequence[0]][sequence[1]]},
        "channel_mixer": {"kind": channel[0], **CHANNEL[channel[0]][channel[1]]},
    }
    tree = {"vocab_size": VOCAB, "d_model": D_MODEL, "n_layers": 2, "blocks": {"only": block}}
    return decode(LanguageModelConfig, {**tree, **changes})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sequence", cases(SEQUENCE), ids=" ".join)
def test_parameters_of_every_sequence_mixer(sequence, tied):
    cfg = model_config(sequence, tie_embeddings=tied)
    budget, model = model_budget(cfg, T), build_model(cfg, 0)
    assert budget.n_params == sum(p.numel() for p in model.parameters())
    table = VOCAB * D_MODEL
    assert budget.n_embedding_params == (table if tied else 2 * table)
    assert budget.n_non_embedding_params == budget.n_params - budget.n_embedding_params


@pytest.mark.parametrize("channel", cases(CHANNEL), ids=" ".join)
def test_parameters_of_every_channel_mixer(channel):
    cfg = model_config(channel=channel)
    budget, model = model_budget(cfg, T), build_model(cfg, 0)
    assert budget.n_params == sum(p.numel() for p in model.parameters())
    unused = 0
    if channel[0] == "moe":
        settings = CHANNEL["moe"][channel[1]]
        n_idle = settings["n_experts"] - settings["n_active_experts"]
        n_matrices = 2 if settings.get("activation") == "silu" else 3
        unused = 2 * n_idle * n_matrices * settings["d_expert"] * D_MODEL
    assert budget.n_active_params == budget.n_params - unused


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def linear_flops(module, n_tokens):
    """2 x weights of every matrix that is multiplied once per token."""
    return (
        2
        * n_tokens
        * sum(m.weight.numel() for m in module.modules() if isinstance(m, torch.nn.Linear))
    )


@pytest.mark.parametrize("variant", SEQUENCE["attention"])
def test_attention_flops_are_those_of_its_products(variant):
    """PyTorch counts all T x T scores, twice what a causal query can use: T against (T + 1) / 2."""
    settings = SEQUENCE["attention"][variant]
    cfg = SEQUENCE_MIXERS["attention"](**{**settings, "backend": "reference"})
    mixer = cfg.build(D_MODEL)
    found = counted(lambda: mixer(torch.randn(1, T, D_MODEL)))
    width = cfg.n_heads * cfg.head_dim
    mixing = found - linear_flops(mixer, T)
    assert mixing == 4 * width * T * T
    window = settings.get("window") or T
    seen = sum(min(t + 1, window) for t in range(T)) / T  # keys of a query, on average
    want = linear_flops(mixer, T) / T + 4 * width * seen
    assert cfg.flops_per_token(D_MODEL, T) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("variant", SEQUENCE["mla"])
def test_mla_flops_are_those_of_its_products(variant):
    cfg = SEQUENCE_MIXERS["mla"](**{**SEQUENCE["mla"][variant], "backend": "reference"})
    mixer = cfg.build(D_MODEL)
    found = counted(lambda: mixer(torch.randn(1, T, D_MODEL)))
    mixing = 2 * cfg.n_heads * (cfg.qk_head_dim + cfg.v_head_dim)
    assert found == linear_flops(mixer, T) + mixing * T * T
    want = linear_flops(mixer, T) / T + mixing * (T + 1) / 2
    assert cfg.flops_per_token(D_MODEL, T) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("variant", SEQUENCE["gated_deltanet"])
def test_gated_deltanet_flops_are_projections_and_the_recurrence(variant):
    """By the definition of the rule: recall, write and read, a K x V product each."""
    cfg = SEQUENCE_MIXERS["gated_deltanet"](**SEQUENCE["gated_deltanet"][variant])
    mixer = cfg.build(D_MODEL)
    want = linear_flops(mixer, T) / T + 3 * 2 * cfg.v_heads * cfg.head_dim * cfg.v_dim
    assert cfg.flops_per_token(D_MODEL, T) == pytest.approx(want, rel=1e-12)


def test_mlp_flops_are_those_of_its_products():
    cfg = CHANNEL_MIXERS["mlp"](d_ff=24)
    mixer = cfg.build(D_MODEL)
    assert counted(lambda: mixer(torch.randn(3, T, D_MODEL))) == 3 * T * cfg.flops_per_token(
        D_MODEL
    )


@pytest.mark.parametrize("variant", CHANNEL["moe"])
def test_moe_flops_are_those_of_the_experts_taken(variant):
    """The loop runs exactly the rows that each expert gets."""
    cfg = CHANNEL_MIXERS["moe"](**{**CHANNEL["moe"][variant], "backend": "loop"})
    mixer = cfg.build(D_MODEL).eval()
    with torch.no_grad():
        found = counted(lambda: mixer(torch.randn(3, T, D_MODEL)))
    assert found == 3 * T * cfg.flops_per_token(D_MODEL)


def test_training_flops_of_a_whole_model():
    """Forward and backward as PyTorch counts them, less what causality saves."""
    cfg = model_config()
    cfg = decode(
        LanguageModelConfig,
        {**cfg.model_dump(mode="json"), "blocks": {"only": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 4,
                               "backend": "reference"},
            "channel_mixer": {"kind": "mlp", "d_ff": 24}}}},
    )  # fmt: skip
    model = build_model(cfg, 0)
    x = torch.randint(VOCAB, (2, T))
    found = counted(lambda: model(x).logits.sum().backward())
    uncausal = 3 * cfg.n_layers * 4 * 8 * (T - (T + 1) / 2)  # per token
    budget = model_budget(cfg, T)
    assert found == pytest.approx(2 * T * (budget.train_flops_per_token + uncausal), rel=1e-12)
    assert budget.train_flops_per_token == 3 * budget.forward_flops_per_token


@pytest.mark.parametrize("n_tokens", [1, 7, 20])
def test_state_bytes_of_a_mixed_model(n_tokens):
    blocks = {
        kind: {
            "sequence_mixer": {"kind": kind, **SEQUENCE[kind]["plain"]},
            "channel_mixer": {"kind": "mlp", "d_ff": 8},
        }
        for kind in SEQUENCE
    }
    cfg = model_config(blocks=blocks, pattern=list(blocks), n_layers=len(blocks))
    model = build_model(cfg, 0).eval()
    x = torch.randint(VOCAB, (1, n_tokens))
    state = model(x, model.initial_state(1)).state
    tensors = [t for layer in state for t in layer if isinstance(t, torch.Tensor)]
    assert state_bytes(cfg, n_tokens, 4) == sum(t.numel() * t.itemsize for t in tensors)


def test_memory_grows_with_what_it_is_made_of():
    cfg = model_config()
    base = training_memory_bytes(cfg, micro_batch_tokens=64, optimizer_bytes_per_param=8)
    more = training_memory_bytes(cfg, micro_batch_tokens=128, optimizer_bytes_per_param=8)
    n_params = model_budget(cfg, T).n_params
    assert more > base > 16 * n_params
    average = training_memory_bytes(cfg, micro_batch_tokens=64, optimizer_bytes_per_param=12)
    assert average - base == 4 * n_params
