"""Cached decoding against running the whole text through at every step; draws by hand."""

import pytest
import torch
from infer.decoding_models import logits_after, roughened, shrunk_models
from tiny_mixers import SEQUENCE

from mixlab.core.config import decode
from mixlab.core.errors import LabError
from mixlab.infer.generate import generate_tokens
from mixlab.infer.sampler import SamplingConfig
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.nn.sequence_mixers import SEQUENCE_MIXERS

SIZES = {kind: variants["plain"] for kind, variants in SEQUENCE.items()}
GREEDY = SamplingConfig(temperature=0)
V = 29
RECIPES = shrunk_models()


def build(kind="attention", **settings):
    tree = {
        "vocab_size": V, "d_model": 16, "n_layers": 2, "max_seq_len": 24,
        "blocks": {"only": {
            "sequence_mixer": {"kind": kind, **SIZES[kind], **settings},
            "channel_mixer": {"kind": "mlp", "d_ff": 24},
        }},
    }  # fmt: skip
    model = build_model(decode(LanguageModelConfig, tree), 1)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)  # spread the logits: no ties at the top
    return model


def run(model, prompt=(3, 1, 4, 1, 5), n=12, sampling=GREEDY, seed=0, **settings):
    return list(
        generate_tokens(model, prompt, max_new_tokens=n, sampling=sampling, seed=seed, **settings)
    )


def uncached(model, prompt, n):
    tokens = list(prompt)
    model.eval()
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", list(SEQUENCE_MIXERS))
def test_cached_greedy_equals_uncached_greedy(kind):
    model = build(kind)
    assert run(model) == uncached(model, [3, 1, 4, 1, 5], 12)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_writes_greedily_what_it_writes_without_a_cache(name):
    model = roughened(RECIPES[name], torch.float32)
    text = [5, 6, 7, 8]
    found = run(model, text, 12)
    for token in found:
        assert token == int(logits_after(model, text).argmax())
        text.append(token)
    assert len(found) == 12


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_window_is_the_same_with_and_without_a_cache(window):
    model = build(window=window)
    assert run(model) == uncached(model, [3, 1, 4, 1, 5], 12)


def test_a_prompt_of_one_token_and_the_longest_answer():
    model = build()
    assert run(model, [2], 23) == uncached(model, [2], 23)


def test_seeds():
    model, warm = build(), SamplingConfig(temperature=1.5)
    first = run(model, sampling=warm, seed=1)
    torch.manual_seed(99)
    assert run(model, sampling=warm, seed=1) == first, "no other draw has a part in it"
    assert run(model, sampling=warm, seed=2) != first


def test_ends_before_eos():
    model = build()
    full = run(model)
    eos = full[4]
    assert run(model, eos_id=eos) == full[: full.index(eos)]


def test_rows_without_a_token_are_never_drawn():
    model, hot = build(), SamplingConfig(temperature=100.0)
    for seed in range(5):
        assert max(run(model, sampling=hot, seed=seed, n_known_tokens=7)) < 7


def test_the_mode_is_put_back():
    model = build().train()
    run(model, n=2)
    assert model.training


@pytest.mark.parametrize(
    ("prompt", "n", "message"),
    [([], 3, "at least one token"), ([1, V], 3, f"prompt with token {V}"),
     ([1] * 20, 5, "at most 4 tokens"),
     ([1] * 30, 1, "prompt of 30 tokens: expected fewer than model.max_seq_len = 24"),
     ([1] * 24, 1, "Shorten the prompt.$"),
     ([1], 0, "max_new_tokens = 0"), ([1], -3, "max_new_tokens = -3")],
)  # fmt: skip
def test_what_cannot_be_continued(prompt, n, message):
    with pytest.raises(LabError, match=message):
        run(build(), prompt, n)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range(seed):
    with pytest.raises(LabError, match=r"seed = "):
        run(build(), seed=seed)
