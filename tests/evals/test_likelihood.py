"""Log-likelihoods against plain forward passes, one request at a time, and against transformers."""

import numpy as np
import pytest
import torch
from tiny_mixers import CHANNEL, D_MODEL, SEQUENCE

from mixlab.core.config import decode
from mixlab.core.errors import LabError
from mixlab.evals.likelihood import Request, Scorer, rolling
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.ops.packing import Packing

V, EOS = 31, 0


def build(mixer="attention", channel="mlp", max_seq_len=24, layers=2):
    blocks = {"full": {
        "sequence_mixer": {"kind": mixer, **SEQUENCE[mixer]["plain"]},
        "channel_mixer": {"kind": channel, **CHANNEL[channel]["plain"]},
    }}  # fmt: skip
    tree = {
        "vocab_size": V, "d_model": D_MODEL, "n_layers": layers, "max_seq_len": max_seq_len,
        "blocks": blocks,
    }  # fmt: skip
    model = build_model(decode(LanguageModelConfig, tree), 0).double()
    with torch.no_grad():  # initial weights hardly distinguish tokens
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    return model.eval()


def requests(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Request(rng.integers(1, V, rng.integers(0, 9)).tolist(),
                rng.integers(1, V, rng.integers(1, 9)).tolist())
        for _ in range(n)
    ]  # fmt: skip


@torch.no_grad()
def by_hand(model, request):
    """Nats and greediness token by token, each from its own forward pass."""
    nats, greedy = 0.0, True
    past = list(request.context)
    for token in request.continuation:
        logits = model(torch.tensor([past or [EOS]])).logits[0, -1]
        nats -= float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        past.append(token)
    return nats, greedy


@pytest.mark.parametrize("channel", ["mlp", "moe"])
@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet", "mla"])
def test_batches_score_as_single_forward_passes_do(mixer, channel):
    torch.manual_seed(0)
    model = build(mixer, channel)
    asked = requests(8)
    found = Scorer(model, EOS, batch_tokens=60).score(asked)
    for request, likelihood in zip(asked, found, strict=True):
        nats, greedy = by_hand(model, request)
        # float64 everywhere: what is left is the order of sums.
        assert likelihood.nats == pytest.approx(nats, rel=1e-9)
        assert likelihood.is_greedy == greedy
        assert likelihood.n_tokens == len(request.continuation)


def test_a_score_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    model, asked = build(), requests()
    together = Scorer(model, EOS, batch_tokens=10_000).score(asked)
    for batch_tokens in (1, 37):
        alone = Scorer(model, EOS, batch_tokens=batch_tokens).score(asked[::-1])[::-1]
        assert [a.nats for a in alone] == pytest.approx([t.nats for t in together], rel=1e-12)


def test_greedy_text_is_known_as_such():
    torch.manual_seed(0)
    model, context = build(), [3, 7, 5]
    text = list(context)
    for _ in range(5):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    greedy = Request(context, text[3:])
    other = Request(context, [*text[3:-1], (text[-1] + 1) % V])
    assert [found.is_greedy for found in Scorer(model, EOS).score([greedy, other])] == [True, False]


def test_a_context_that_is_too_long_loses_its_start_and_says_so():
    torch.manual_seed(0)
    model = build(max_seq_len=12)
    request = Request(list(range(1, 21)), [5, 6, 7])
    (found,) = Scorer(model, EOS).score([request])
    assert found.n_dropped == 11
    assert found.nats == pytest.approx(by_hand(model, Request(range(12, 21), [5, 6, 7]))[0])
    with pytest.raises(LabError, match="continuation of 13 tokens: expected 1 to"):
        Scorer(model, EOS).score([Request((), [1] * 13)])


def test_rolling_requests_score_every_token_once():
    tokens = list(range(100, 137))
    for window, overlap in ((8, 4), (8, 1), (40, 5), (37, 36)):
        asked = rolling(tokens, window, overlap)
        assert [t for request in asked for t in request.continuation] == tokens
        for request in asked:
            n = len(request.context) + len(request.continuation)
            assert n <= window
            if request.context:
                start = request.continuation[0] - 100
                assert list(request.context) == tokens[start - overlap : start]
    with pytest.raises(LabError, match="overlap = 8: expected 1 to window - 1 = 7"):
        rolling(tokens, 8, 8)


def test_transformers_finds_the_same_text_as_likely():
    transformers = pytest.importorskip("transformers")
    from parity.test_llama_parity import make_pair

    ours, stock = make_pair(2, tie=True)
    assert isinstance(stock, transformers.LlamaForCausalLM)
    asked = [request for request in requests(8) if request.context]
    for request, found in zip(asked, Scorer(ours, EOS).score(asked), strict=True):
        ids = torch.tensor([[*request.context, *request.continuation]])
        labels = ids.clone()
        labels[:, : len(request.context)] = -100
        with torch.no_grad():
            mean = stock(ids, labels=labels).loss
        # Both in float32, with sums in another order.
        assert found.nats == pytest.approx(float(mean) * len(request.continuation), rel=1e-4)


def test_a_prefix_lm_reads_its_contexts_both_ways():
    torch.manual_seed(0)
    model, asked = build(), [r for r in requests(6) if len(r.context) > 1]
    found = Scorer(model, EOS, prefix_lm=True, batch_tokens=40).score(asked)
    for request, likelihood in zip(asked, found, strict=True):
        # As such a model decodes: the prompt at once, then token by token with the state kept.
        state, tokens = model.initial_state(1), torch.tensor([list(request.context)])
        nats, packing = 0.0, Packing.whole_prefix(tokens)
        for token in request.continuation:
            with torch.no_grad():
                out = model(tokens, state, packing)
            nats -= float(out.logits[0, -1].log_softmax(-1)[token])
            state, tokens, packing = out.state, torch.tensor([[token]]), None
        assert likelihood.nats == pytest.approx(nats, rel=1e-9)
    plain = Scorer(model, EOS).score(asked)
    assert [p.nats for p in plain] != pytest.approx([f.nats for f in found], rel=1e-6)
