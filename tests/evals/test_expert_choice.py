from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from mixlab.core.config import decode
from mixlab.data.batch import Batch
from mixlab.data.loader import Loader
from mixlab.data.shards import cut_windows
from mixlab.data.tokenizers.base import EOS, Tokenizer
from mixlab.evals.expert_choice import (
    Choices,
    count_pairs,
    expert_choice,
    expert_choices,
    mutual_information_bits,
    specialisation,
    spread_windows,
    typical_tokens,
)
from mixlab.evals.token_classes import CLASSES, class_of, token_classes
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.ops.packing import Packing


def _tokenizer(decoder, entries: list[str]) -> Tokenizer:
    vocab = {entry: i for i, entry in enumerate([*entries, EOS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=entries[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoder
    backend.add_special_tokens([tokenizers.AddedToken(EOS, special=True, normalized=False)])
    return Tokenizer(backend, EOS)


def _moe_model(n_experts: int = 4, n_active: int = 1, n_layers: int = 2, **moe):
    mixer = {"kind": "attention", "n_heads": 2, "head_dim": 8}
    experts = {
        "kind": "moe", "n_experts": n_experts, "n_active_experts": n_active, "d_expert": 8,
        "norm_topk_prob": n_active > 1, **moe,
    }  # fmt: skip
    tree = {
        "vocab_size": 32, "d_model": 16, "n_layers": n_layers,
        "blocks": {
            "dense": {"sequence_mixer": mixer, "channel_mixer": {"kind": "mlp", "d_ff": 16}},
            "moe": {"sequence_mixer": mixer, "channel_mixer": experts},
        },
        "pattern": {"block": "dense", "at": [0], "rest": "moe"},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), seed=0)


def _batches(n: int = 3, rows: int = 2, length: int = 40) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(32, (n, rows, length), generator=g)
    segments = (torch.arange(length) >= 17).int().expand(rows, length)
    return [Batch(t, t, segments) for t in tokens]


# --- classes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\n", "line break"), ("\n    ", "line break"), ("\r\n", "line break"),
        ("    ", "spaces"), ("\t", "spaces"),
        ("7", "number"), (" 12", "number"), ("0x1F", "number"), (".5", "number"),
        (" the", "word start"), ("\nimport", "word start"),
        ("ing", "word piece"), ("_name", "word piece"), (".append", "word piece"),
        ("(", "punctuation"), (" ==", "punctuation"), ("):\n", "punctuation"),
        ("", "other"), ("\ufffd", "other"), ("\x00", "other"),
    ],
)  # fmt: skip
def test_class_of_a_text(text: str, name: str):
    assert class_of(text) == name


def test_a_leading_blank_is_seen_where_the_decoder_drops_it_at_the_start_of_a_text():
    entries = ["<unk>", "\u2581a", "\u2581the", "the", "\u25817"]
    tokenizer = _tokenizer(decoders.Metaspace(), entries)
    tokenizer.backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert tokenizer.decode([2]) == "the"
    names = [CLASSES[i] for i in token_classes(tokenizer, [2, 3, 4, tokenizer.eos_id])]
    assert names == ["word start", "word piece", "number", "end of document"]


# --- counting


def test_counts_of_a_hand_case():
    experts = np.array([[0, 1], [1, 2], [1, 0]])
    counts = count_pairs(np.array([0, 0, 1]), experts, 2, 3)
    assert counts.tolist() == [[1, 2, 1], [1, 1, 0]]


def test_information_of_hand_cases():
    assert mutual_information_bits(np.eye(4, dtype=int) * 5) == pytest.approx(2)  # log2 4
    assert mutual_information_bits(np.outer([1, 3], [2, 5, 7])) == pytest.approx(0, abs=1e-12)
    assert mutual_information_bits(np.zeros((2, 3), dtype=int)) == 0


@pytest.mark.parametrize("k", [1, 3])
def test_uniform_routing_is_told_from_chance(k: int):
    g = np.random.default_rng(0)
    classes = g.integers(8, size=2000)
    experts = np.argsort(g.random((2000, 16)), axis=1)[:, :k]
    found = specialisation(classes, experts, 8, 16)
    assert 0 < found.bits < 0.06  # the raw figure is above zero ...
    # ... by about what chance gives: the spread of either is some 10 % of it.
    assert found.bits == pytest.approx(found.chance_bits, rel=0.3)
    assert found.chance_bits < found.chance_high_bits < 1.3 * found.chance_bits
    if k == 1:  # the correction of Miller and Madow, where its assumptions hold
        expected = 7 * 15 / (2 * 2000 * np.log(2))
        assert found.chance_bits == pytest.approx(expected, rel=0.1)


def test_a_class_that_decides_its_experts_reaches_the_bound():
    classes = np.repeat([0, 1], 500)
    experts = np.where(classes[:, None] == 0, [0, 1], [2, 3])  # k = 2 of 4, even load
    found = specialisation(classes, experts, 2, 4)
    assert found.bits == pytest.approx(1) == found.most_bits
    assert found.bits > 50 * found.chance_high_bits


def test_typical_tokens_are_those_beyond_the_experts_share():
    tokens = np.array([5] * 50 + [6] * 50 + [7] * 4)
    experts = np.where(tokens == 6, 1, 0)[:, None]
    experts[-1] = 2
    assert typical_tokens(tokens, experts, 4, 2) == [[5, 7], [6], [7], []]


# --- the model


def test_a_router_rigged_for_digits_is_reported_so():
    entries = ["<unk>", "a", "b", "c", "(", ")", "1", "2", "33"]
    tokenizer = _tokenizer(decoders.Fuse(), entries)
    digits = [6, 7, 8]
    model = _moe_model(n_layers=2)
    with torch.no_grad():
        for block in model.blocks:  # nothing mixes, so a router sees its token's embedding alone
            block.sequence_mixer.o_proj.weight.zero_()
        embedding = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
        embedding[:, 0] = 0
        embedding[digits] = 0
        embedding[digits, 0] = 1
        model.embed_tokens.weight.copy_(embedding)
        model.blocks[0].channel_mixer.down_proj.weight.zero_()
        gate = model.blocks[1].channel_mixer.gate.weight
        gate.zero_()
        gate[2, 0] = 10  # logit 10 * 4 for digits, 0 for all experts otherwise
        gate[0, 1:] = 1e-3  # the others go to experts 0 or 1, by the sign of their sum
        gate[1, 1:] = -1e-3
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 10, (4, 64), generator=g)  # 9 is EOS
    batches = [Batch(tokens, tokens, torch.zeros_like(tokens, dtype=torch.int32))]
    found = expert_choice(expert_choices(model, batches), tokenizer)
    layer = found["layers"]["layer_01"]
    n_digits = int(torch.isin(tokens, torch.tensor(digits)).sum())
    row = dict(zip(found["classes"], layer["counts"], strict=True))["number"]
    assert row == [0, 0, n_digits, 0]
    assert np.array(layer["counts"])[:, 2].sum() == n_digits
    assert set(layer["typical"][2]) == {"1", "2", "33"}
    assert layer["bits"] > 0.5 and layer["bits"] > 10 * layer["chance_high_bits"]
    assert list(found["layers"]) == ["layer_01"] and found["n_tokens"] == 256
    assert sum(found["class_tokens"]) == 256


@pytest.mark.parametrize("moe", [{}, {"scores": "sigmoid", "bias_update_rate": 0.01}])
def test_choices_are_those_of_the_models_own_forward_pass(moe: dict):
    """Against the shares that the trunk itself reports in training mode, batch by batch."""
    model = _moe_model(n_experts=5, n_active=2, n_layers=3, n_shared_experts=1, **moe)
    for block in model.blocks[1:]:
        if block.channel_mixer.gate.e_score_correction_bias is not None:
            block.channel_mixer.gate.e_score_correction_bias.normal_()
    for batch in _batches():
        metrics = model.train().trunk(batch.tokens, None, Packing(batch.segments)).metrics
        choices = expert_choices(model, [batch])
        assert model.training
        for name, figures in metrics.items():
            counts = np.bincount(choices.experts[name].ravel(), minlength=5)
            want = figures["expert_utilization"].numpy()
            np.testing.assert_allclose(counts / counts.sum(), want, rtol=1e-6)  # float32 shares


def test_halves_of_a_block_are_the_block():
    model, (batch, *_) = _moe_model(n_active=2).eval(), _batches()
    packing = Packing(batch.segments)
    x = model.embed(batch.tokens)
    block = model.blocks[1]
    halves = block.mix_channels(block.mix_sequence(x, None, packing).y).y
    assert torch.equal(halves, block(x, None, packing).x)


def test_no_experts_no_layers():
    choices = Choices(np.array([1, 2]), {}, {})
    tokenizer = _tokenizer(decoders.Fuse(), ["<unk>", "a", "b"])
    assert expert_choice(choices, tokenizer)["layers"] == {}


def test_windows_are_spread_over_the_evaluated_ones():
    tokens = np.arange(4 * 11 + 1, dtype=np.uint16)
    shards = SimpleNamespace(
        n_windows=lambda length: 11,
        read=lambda windows, length: cut_windows(tokens, -1, windows, length),
    )
    shards.name = "validation"
    loader = Loader(shards, 4, seed=0)
    rows = [b.tokens[:, 0].tolist() for b in spread_windows(loader, 10, 3, batch_size=2)]
    assert rows == [[0, 12], [24]]  # windows 0, 3, 6 of four tokens each
    rows = [b.tokens[:, 0].tolist() for b in spread_windows(loader, 2, 100, batch_size=8)]
    assert rows == [[0, 4]]
