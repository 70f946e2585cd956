"""Loss by document and bits per byte of a text, against the loss of training and by hand."""

import math

import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from evals.test_likelihood import V, build

from mixlab.core.errors import DataError
from mixlab.data.batch import Batch
from mixlab.evals.language_modelling import evaluate
from mixlab.evals.likelihood import Scorer
from mixlab.evals.text import score_text, split_scores, sums_by_document

EOS = 0


def test_sums_by_document_are_the_loss_of_training_taken_apart():
    torch.manual_seed(0)
    model, rng = build(), np.random.default_rng(0)
    documents = [[*rng.integers(1, V, n).tolist(), EOS] for n in (5, 1, 14, 3, 9, 20)]
    stream = np.array([token for document in documents for token in document])
    starts = np.cumsum([0, *map(len, documents)])
    T, n_windows = 8, (len(stream) - 1) // 8
    spans = torch.tensor(stream[np.arange(n_windows)[:, None] * T + np.arange(T + 1)])
    segments = torch.zeros(n_windows, T, dtype=torch.int32)
    segments[:, 1:] = (spans[:, :-2] == EOS).cumsum(1)
    batches = [
        Batch(spans[i : i + 3, :-1], spans[i : i + 3, 1:], segments[i : i + 3])
        for i in range(0, n_windows, 3)
    ]
    token_bytes = np.arange(V, dtype=np.float32) % 4
    sums = sums_by_document(model, batches, starts, token_bytes)
    whole = evaluate(model, batches, token_bytes)
    scores = {s.metric: s for s in split_scores("validation", sums, V)}
    assert scores["loss_nats"].value == pytest.approx(whole.loss_nats, rel=1e-12)
    assert scores["bits_per_byte"].value == pytest.approx(whole.bits_per_byte, rel=1e-12)
    assert scores["accuracy"].value == pytest.approx(whole.accuracy, rel=1e-12)
    assert scores["loss_nats"].n == whole.n_tokens == n_windows * T
    # Each document owns the targets that are its own tokens; the stream's first is no target.
    owned = [len(document) for document in documents]
    owned[0] -= 1
    owned[-1] -= len(stream) - 1 - n_windows * T
    assert sums.n_tokens.tolist() == owned[: len(sums.n_tokens)]


def test_examples_that_lie_whole_in_their_windows_are_told_apart_by_segments():
    torch.manual_seed(0)
    model, g = build(), torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(1, V, (2, 3, 8), generator=g)
    segments = torch.tensor([[0] * 8, [0, 0, 0, 1, 1, 1, 2, 2], [0] * 4 + [1] * 4])
    targets[:, :2] = -100
    targets[1, 3] = -100
    batches = [Batch(tokens[:1], targets[:1], segments[:1]), Batch(tokens[1:], targets[1:],
               segments[1:])]  # fmt: skip
    token_bytes = np.ones(V, dtype=np.float32)
    sums = sums_by_document(model, batches, None, token_bytes)
    assert sums.n_tokens.tolist() == sums.n_bytes.tolist() == [6, 1, 2, 2, 2, 4]
    whole = evaluate(model, batches, token_bytes)
    assert sums.nats.sum() / 17 == pytest.approx(whole.loss_nats, rel=1e-12)


def test_bits_per_byte_of_a_text_are_those_of_one_pass():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = build_bytes(tokenizer.vocab_size)
    text = "Zwölf Boxkämpfer jagen Viktor"
    found = score_text(Scorer(model, tokenizer.eos_id), tokenizer, text, "t", window=64)
    ids = tokenizer.encode(text)
    nats = 0.0
    for t, token in enumerate(ids):
        past = ids[:t] or [tokenizer.eos_id]
        with torch.no_grad():
            nats -= float(model(torch.tensor([past])).logits[0, -1].log_softmax(-1)[token])
    bits, loss = found.scores
    assert found.n_bytes == len(ids) == 31 and found.n_windows == 1
    assert bits.value == pytest.approx(nats / math.log(2) / 31, rel=1e-9)
    assert loss.value == pytest.approx(nats / 31, rel=1e-9)
    assert bits.standard_error is None  # one window says nothing of the spread
    assert bits.chance == pytest.approx(math.log2(257))


def test_windows_change_the_context_and_never_the_bytes():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    scorer = Scorer(build_bytes(tokenizer.vocab_size), tokenizer.eos_id)
    found = score_text(scorer, tokenizer, "abc def " * 20, "t", window=10)
    bits, loss = found.scores
    assert found.n_windows == 1 + math.ceil(150 / 5)
    assert bits.value * math.log(2) == pytest.approx(loss.value, rel=1e-9)  # a token is a byte
    assert bits.standard_error is not None and bits.standard_error > 0


def test_an_empty_text_is_refused():
    tokenizer = byte_tokenizer()
    scorer = Scorer(build_bytes(tokenizer.vocab_size), tokenizer.eos_id)
    with pytest.raises(DataError, match=r"text empty.txt: is empty"):
        score_text(scorer, tokenizer, "", "empty.txt", window=8)


def build_bytes(vocab_size):
    from mixlab.core.config import decode
    from mixlab.nn.language_model import LanguageModelConfig, build_model

    tree = {
        "vocab_size": vocab_size, "d_model": 16, "n_layers": 1, "max_seq_len": 64,
        "blocks": {"full": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
            "channel_mixer": {"kind": "mlp", "d_ff": 24},
        }},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), 0).double().eval()
