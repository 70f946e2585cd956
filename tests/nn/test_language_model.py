"""The whole decoder: contract of its forward, its start, its rules."""

import math

import pytest
import torch
from tiny_mixers import CHANNEL, SEQUENCE

from mixlab.core.config import decode
from mixlab.core.errors import BackendError, ConfigError
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.nn.sequence_mixers.gated_deltanet import GatedDeltaNetConfig
from mixlab.ops.packing import Packing

BLOCK = {
    "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
    "channel_mixer": {"kind": "mlp", "d_ff": 24},
}
TREE = {"vocab_size": 31, "d_model": 16, "n_layers": 2, "blocks": {"full": BLOCK}}
MIXED = {
    **TREE, "n_layers": 3, "pattern": ["linear", "latent", "full"],
    "blocks": {
        "full": BLOCK,
        "linear": {
            "sequence_mixer": {"kind": "gated_deltanet", **SEQUENCE["gated_deltanet"]["plain"]},
            "channel_mixer": {"kind": "moe", **CHANNEL["moe"]["plain"]},
        },
        "latent": {
            "sequence_mixer": {"kind": "mla", **SEQUENCE["mla"]["plain"]},
            "channel_mixer": {"kind": "moe", **CHANNEL["moe"]["shared"]},
        },
    },
}  # fmt: skip


def build(tree, seed=0, **changes):
    return build_model(decode(LanguageModelConfig, {**tree, **changes}), seed)


def tokens(batch=2, length=9):
    g = torch.Generator().manual_seed(3)
    return torch.randint(31, (batch, length), generator=g)


@pytest.fixture(params=["one kind", "mixed", "untied"])
def model(request):
    tree = {"one kind": TREE, "mixed": MIXED, "untied": {**TREE, "tie_embeddings": False}}
    return build(tree[request.param]).double().eval()


def test_is_causal(model):
    x = tokens()
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 31
    before, after = model(x).logits, model(changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_decoding_equals_one_call(model):
    x = tokens()
    want = model(x).logits
    state, found = model.initial_state(2), []
    for piece in x.split([4, 1, 1, 1, 2], dim=1):
        out = model(piece, state)
        state = out.state
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), want, rtol=1e-9, atol=1e-11)
    last = model(x[:, :6], model.initial_state(2), last_only=True).logits
    torch.testing.assert_close(last, want[:, 5:6], rtol=1e-9, atol=1e-11)


def test_packed_documents_are_as_if_alone(model):
    x = tokens(1)
    packed = model(x, None, Packing(torch.tensor([[0] * 4 + [1] * 5]))).logits
    torch.testing.assert_close(packed[:, :4], model(x[:, :4]).logits, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(packed[:, 4:], model(x[:, 4:]).logits, rtol=1e-9, atol=1e-11)


def test_starts_near_uniform(model):
    """The first loss is near ln V; an untied head has logits of unit size, which cost 0.5 nats."""
    logits = model(tokens(8, 16)).logits
    loss = -logits.log_softmax(-1).mean()
    assert float(loss.detach()) == pytest.approx(math.log(31), abs=0.6)


def test_the_same_seed_gives_the_same_weights_and_leaves_other_draws_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    first = build(MIXED, seed=1)
    assert torch.equal(torch.rand(3), want)
    second, third = build(MIXED, seed=1), build(MIXED, seed=2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.embed_tokens.weight, third.embed_tokens.weight)


def test_depth_does_not_grow_the_stream():
    """Residual writers shrink with depth, so 32 layers add about as much as 2."""
    sizes = []
    for n_layers in (2, 32):
        model = build(TREE, n_layers=n_layers, d_model=32)
        x = model.embed_tokens(tokens(4, 16)) * 50  # unit scale, as after some training
        added = x
        for block in model.blocks:
            added = block(added).x
        sizes.append(float((added - x).detach().std()))
    assert sizes[1] < 2 * sizes[0]


def test_tied_and_untied_heads():
    tied, untied = build(TREE), build(TREE, tie_embeddings=False)
    assert tied.head_weight is tied.embed_tokens.weight
    assert untied.head_weight is untied.lm_head.weight
    assert "lm_head.weight" not in dict(tied.named_parameters())


def test_scaled_embeddings():
    plain, scaled = build(TREE).eval(), build(TREE, scale_embeddings=True).eval()
    with torch.no_grad():
        plain.embed_tokens.weight.mul_(4.0)  # sqrt(16)
        for model in (plain, scaled):
            model.blocks = torch.nn.ModuleList()
    h = [model.trunk(tokens()).h for model in (plain, scaled)]
    torch.testing.assert_close(*h)


def test_dropout_acts_in_training_only():
    model = build(TREE, dropout=0.5)
    x = tokens()
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


def test_auxiliary_losses_and_figures_are_collected():
    out = build(MIXED).train().trunk(tokens())
    assert out.aux_loss is not None and out.aux_loss.requires_grad
    assert sorted(out.metrics) == ["layer_00", "layer_01"]
    assert build(TREE).train().trunk(tokens()).aux_loss is None


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"pattern": ["ful"]}, "pattern = 'ful'"),
        ({"pattern": {"block": "full", "at": [2]}}, "pattern.at"),
        ({"blocks": {"a": BLOCK, "b": BLOCK}}, "pattern = None"),
        ({"blocks": {"a": BLOCK, "b": BLOCK}, "pattern": ["a"]}, "blocks.b = 'unused'"),
        ({"blocks": {}}, "blocks"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"vocab_size": None}, "vocab_size"),
        (
            {"blocks": {"full": {**BLOCK, "channel_mixer": {"kind": "mpl"}}}},
            "blocks.full.channel_mixer.kind = 'mpl'",
        ),
    ],
)
def test_rules(changes, start):
    with pytest.raises(ConfigError) as error:
        decode(LanguageModelConfig, {**TREE, **changes})
    assert str(error.value).startswith(start)


def test_a_named_kernel_does_not_bind_a_model_in_use():
    """A model trained with GPU kernels by name reads and writes text on a CPU."""
    tree = {
        "vocab_size": 32, "d_model": 16, "n_layers": 2, "max_seq_len": 32,
        "blocks": {
            "linear": {
                "sequence_mixer": {
                    "kind": "gated_deltanet", "n_heads": 2, "head_dim": 8, "backend": "triton",
                    "conv_backend": "triton",
                },
                "channel_mixer": {"kind": "mlp", "d_ff": 32},
            },
            "full": {
                "sequence_mixer": {
                    "kind": "attention", "n_heads": 2, "head_dim": 8, "backend": "flash",
                },
                "channel_mixer": {"kind": "mlp", "d_ff": 32},
            },
        },
        "pattern": ["linear", "full"],
    }  # fmt: skip
    named = decode(LanguageModelConfig, tree)
    tokens = torch.arange(12)[None] % 32
    with pytest.raises(BackendError, match="triton"):
        build_model(named, 0)(tokens)
    model = build_model(named.portable(), 0).eval()
    whole = model(tokens).logits
    state, parts = model.initial_state(1), []
    for part in tokens.split(5, dim=1):
        out = model(part, state)
        state = out.state
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    # What a kernel is named for stays, and so does all else.
    assert named.blocks["linear"].sequence_mixer.backend == "triton"
    assert named.portable().blocks["linear"].sequence_mixer.n_heads == 2


def test_a_model_with_named_kernels_writes_its_samples():
    """At the end of training, in another precision than it was trained in."""
    cfg = decode(
        GatedDeltaNetConfig,
        {"n_heads": 2, "head_dim": 8, "backend": "triton"},
    )
    mixer = cfg.build(16)
    x = torch.randn(1, 6, 16)
    state = mixer.initial_state(1, x.device, x.dtype)
    want = cfg.portable().build(16)
    want.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x, state).y, want(x).y)
