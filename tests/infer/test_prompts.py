"""Whole prompts with the weights of the decoding steps, against the model's own forward pass."""

import pytest
import torch
from infer.decoding_models import logits_after, roughened, shrunk_models, small
from tiny_mixers import SEQUENCE

from mixlab.infer.decoding import prompt_mixers, prompts
from mixlab.infer.decoding.attention import AttentionStep
from mixlab.infer.decoding.key_values import KeyValueCache
from mixlab.infer.decoding.row_model import row_model

ATTENTION = {"kind": "attention", "n_heads": 4, "head_dim": 16}
DELTA = {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 8}
MIXERS = {
    "plain attention": ATTENTION,
    "window": ATTENTION | {"window": 5},
    "grouped": ATTENTION
    | {"n_kv_heads": 2, "qk_norm": "head", "rope_frac": 0.25, "output_gate": True},
    "biases": ATTENTION | {"bias": True},
    "no positions": ATTENTION | {"rope_frac": 0.0},
    "delta": DELTA,
    "more values": DELTA | {"n_v_heads": 4, "v_head_dim": 4},
    "no convolution": DELTA | {"conv_size": 0},
    "nothing fades": DELTA | {"decay": "none", "output_gate": False, "allow_neg_eigval": True},
}
RECIPES = shrunk_models()
HYBRID = RECIPES["hybrid-sparse"]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """This way of reading, and the cache that it writes to, on a CPU in float64."""

    def new_cache(self):
        cfg = self.cfg
        return KeyValueCache(self.empty, cfg.kv_heads, cfg.head_dim, cfg.window, self.order)

    monkeypatch.setattr(prompts.Prompts, "fits", lambda model, dtype: model.recursion is None)
    monkeypatch.setattr(AttentionStep, "new_cache", new_cache)
    monkeypatch.setattr(prompt_mixers, "flash_obstacle", lambda *args, **sizes: None)


def draw(n, seed):
    return torch.randint(0, 29, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_follows(model, rows, row, texts, n_steps):
    """What is read, and steps after it, are as by one call over each whole text."""
    found = rows.read(row, texts)
    texts = [list(text) for text in texts]
    for i in range(n_steps + 1):
        want = torch.stack([logits_after(model, text) for text in texts])
        # Angles are float32.
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6 * want.abs().max().item())
        if i < n_steps:
            tokens = draw(row + len(texts), seed=i)
            for text, token in zip(texts, tokens[row:], strict=True):
                text.append(token)
            found = rows.step(tokens)[row:]


@pytest.mark.parametrize("name", MIXERS)
def test_every_variant_of_the_mixers(name):
    """Prompts shorter and longer than a window, a convolution, and what stood there before."""
    model = roughened(small(MIXERS[name]))
    rows = row_model(model, backend="torch")
    assert rows._prompts is not None
    for texts in ([draw(13, 0), draw(13, 1)], [draw(1, 2)], [draw(4, 3), draw(4, 4)]):
        assert_follows(model, rows, 0, texts, n_steps=3)


def test_many_prompts_are_read_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(prompts, "TOKENS_AT_ONCE", 15)
    model = roughened(HYBRID)
    rows = row_model(model, backend="torch")
    rows.read(0, [draw(3, 9)])
    assert_follows(model, rows, 1, [draw(7, i) for i in range(5)], n_steps=1)


def test_prompts_see_nothing_of_longer_ones_before_them():
    model = roughened(small(MIXERS["grouped"], max_seq_len=320))
    rows = row_model(model, backend="torch")
    for n_tokens in (150, 129, 131, 33, 32):
        assert_follows(model, rows, 0, [draw(n_tokens, 0), draw(n_tokens, 1)], n_steps=1)


OTHERS = {
    "attention with a norm over all heads": small(ATTENTION | {"qk_norm": "full"}),
    "delta by a kernel's name": small(DELTA | {"backend": "chunked"}),
    "experts": RECIPES["moe"],
    "latent attention": small({"kind": "mla"} | SEQUENCE["mla"]["plain"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_mixers_without_such_a_form_are_called_as_they_are(name):
    model = roughened(OTHERS[name])
    assert_follows(model, row_model(model, backend="torch"), 0, [draw(5, 0), draw(5, 1)], 2)


def test_looped_models_and_whole_prefixes_are_left_to_the_model():
    assert row_model(roughened(RECIPES["looped-lm"]), backend="torch")._prompts is None
    assert row_model(roughened(HYBRID), prefix_lm=True, backend="torch")._prompts is None
