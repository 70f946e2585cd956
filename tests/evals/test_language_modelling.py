"""Validation figures against an independent computation in NumPy float64."""

import math

import numpy as np
import pytest
import torch

from mixlab.core.config import decode
from mixlab.data.batch import IGNORE, Batch
from mixlab.evals.language_modelling import evaluate
from mixlab.nn.language_model import LanguageModelConfig, build_model

V = 13


def build(dropout=0.0):
    tree = {
        "vocab_size": V, "d_model": 16, "n_layers": 1, "dropout": dropout,
        "blocks": {"full": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
            "channel_mixer": {"kind": "mlp", "d_ff": 24},
        }},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), 0)


def batches():
    """Two of different size, so that a mean of means would differ; one position has no target."""
    g = torch.Generator().manual_seed(0)
    found = []
    for rows in (3, 1):
        tokens, targets = torch.randint(V, (2, rows, 8), generator=g)
        targets[0, 3] = IGNORE
        found.append(Batch(tokens, targets, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]] * rows)))
    return found


BYTES = np.arange(V, dtype=np.float32) % 5  # some tokens stand for no bytes


def by_numpy(model):
    nats, hits, n_bytes, n = 0.0, 0, 0.0, 0
    for tokens, targets, segments, _ in batches():
        for row in range(len(tokens)):
            for document in segments[row].unique():
                here = segments[row] == document
                with torch.no_grad():
                    logits = model.double().eval()(tokens[row : row + 1, here]).logits[0].numpy()
                for scores, target in zip(logits, targets[row, here].tolist(), strict=True):
                    if target == IGNORE:
                        continue
                    nats += math.log(np.exp(scores).sum()) - scores[target]
                    hits += int(scores.argmax() == target)
                    n_bytes += float(BYTES[target])
                    n += 1
    return nats, hits, n_bytes, n


def test_figures_are_those_of_numpy():
    nats, hits, n_bytes, n = by_numpy(build())
    found = evaluate(build().double(), batches(), BYTES)
    assert found.n_tokens == n == 30
    assert found.loss_nats == pytest.approx(nats / n, rel=1e-12)
    assert found.accuracy == hits / n
    assert found.perplexity == pytest.approx(math.exp(nats / n), rel=1e-12)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-12)
    # In float32, as it is used: rounding alone.
    assert evaluate(build(), batches(), BYTES).loss_nats == pytest.approx(nats / n, rel=1e-5)


def test_bits_per_byte_by_hand():
    """Uniform guessing among 16 tokens of 2 bytes each costs 4 bits for 2 bytes."""

    class Uniform(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = torch.nn.Embedding(16, 4)
            self.head_weight = torch.zeros(16, 4)

        def trunk(self, tokens, state, packing):
            return type("Trunk", (), {"h": torch.zeros(*tokens.shape, 4)})

    tokens = torch.zeros(2, 3, dtype=torch.int64)
    found = evaluate(Uniform(), [Batch(tokens, tokens, tokens)], np.full(16, 2, np.float32))
    assert found.bits_per_byte == pytest.approx(2.0, rel=1e-6)
    assert found.perplexity == pytest.approx(16.0, rel=1e-6)


def test_text_of_no_bytes_has_no_bits_per_byte():
    assert math.isnan(evaluate(build(), batches(), np.zeros(V, np.float32)).bits_per_byte)


def test_dropout_is_off_and_the_mode_is_put_back():
    model = build(dropout=0.5).train()
    state = torch.get_rng_state()
    first, second = (evaluate(model, batches(), BYTES) for _ in range(2))
    assert first == second and model.training
    assert torch.equal(torch.get_rng_state(), state), "training draws on as if nothing had been"
    model.eval()
    assert evaluate(model, batches(), BYTES) == first and not model.training


def test_the_mode_is_put_back_after_an_error():
    model = build().train()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, (1 / 0 for _ in range(2)), BYTES)
    assert model.training


def test_a_half_precision_trunk_is_scored_in_float32():
    exact = evaluate(build(), batches(), BYTES)
    half = evaluate(build(), batches(), BYTES, compute_dtype=torch.bfloat16)
    assert half.loss_nats == pytest.approx(exact.loss_nats, abs=0.02)
    # A loss that had passed through bfloat16 would have no more than 8 bits.
    assert half.loss_nats != float(torch.tensor(half.loss_nats).bfloat16())


def test_rows_without_targets_that_fill_a_batch_change_no_figure():
    padded = [batch.padded(3) for batch in batches()]
    assert [len(batch.tokens) for batch in padded] == [3, 3]
    found, want = (evaluate(build().double(), b, BYTES) for b in (padded, batches()))
    assert found.n_tokens == want.n_tokens and found.accuracy == want.accuracy
    assert found.loss_nats == pytest.approx(want.loss_nats, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(want.bits_per_byte, rel=1e-12)
