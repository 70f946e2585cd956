"""Draws against shares worked out by hand, and against transformers' filters."""

import math

import numpy as np
import pytest
import torch

from mixlab.infer import sampler
from mixlab.infer.sampler import SamplingConfig, likeliest, logprobs, penalize, sample

PROBS = torch.tensor([0.5, 0.25, 0.15, 0.1])


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(n=4000, order=(0, 1, 2, 3), **settings):
    """How often each token is drawn, if token order[i] has the i-th probability."""
    logits = torch.empty(n, 4)
    logits[:, list(order)] = PROBS.log()
    drawn = sample(logits, SamplingConfig(**settings), uniforms(n))
    return (torch.bincount(drawn, minlength=4) / n)[list(order)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)], ids=str)
@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"temperature": 1}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 1, "top_k": 1}, [1, 0, 0, 0]),
        ({"temperature": 1, "top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1, "top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1, "top_p": 0.5}, [1, 0, 0, 0]),
        ({"temperature": 1, "top_p": 0.51}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1, "top_p": 0.76}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"temperature": 1, "top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 1, "top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1, "top_k": 3, "top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"temperature": 1, "min_p": 0.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1, "min_p": 0.25}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"temperature": 1, "min_p": 0.49}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1, "min_p": 1.0}, [1, 0, 0, 0]),
        # 0.25 / 0.0625 / 0.0225 / 0.01 after the temperature, so the third has 9 % of the first.
        ({"temperature": 0.5, "min_p": 0.1}, [0.8, 0.2, 0, 0]),
        ({"temperature": 1, "top_k": 3, "min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
    ],
    ids=str,
)
def test_shares_by_hand(settings, want, order):
    found = shares(order=order, **settings)
    # Four standard deviations of a share drawn 4000 times.
    assert found.tolist() == pytest.approx(want, abs=4 * (0.25 / 4000) ** 0.5)
    assert all(share == 0 for share, expected in zip(found, want, strict=True) if expected == 0)


def test_a_draw_is_the_place_of_its_number_on_the_ladder():
    numbers = torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.9001, 0.9999], dtype=torch.float64)
    logits = PROBS.log().expand(6, 4)
    drawn = sample(logits, SamplingConfig(temperature=1), numbers)
    assert drawn.tolist() == [0, 0, 1, 1, 3, 3]


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.8, "min_p": 0.05}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_what_is_left_is_what_transformers_leaves(settings, temperature):
    pytest.importorskip("transformers")
    from transformers.generation import logits_process as stock

    g = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(1, 50, generator=g)
    scores = stock.TemperatureLogitsWarper(temperature)(None, logits)
    if "top_k" in settings:
        scores = stock.TopKLogitsWarper(settings["top_k"])(None, scores)
    if "top_p" in settings:
        scores = stock.TopPLogitsWarper(settings["top_p"])(None, scores)
    if "min_p" in settings:
        scores = stock.MinPLogitsWarper(settings["min_p"])(None, scores)
    want = scores.softmax(-1)[0]
    n = 20_000
    cfg = SamplingConfig(temperature=temperature, **settings)
    drawn = sample(logits.expand(n, -1), cfg, uniforms(n))
    found = torch.bincount(drawn, minlength=50) / n
    assert torch.equal(found > 0, want > 0) or want[(found > 0) != (want > 0)].max() < 1e-3
    # Four standard deviations of a share drawn that often.
    assert (found - want).abs().max() < 4 * (0.25 / n) ** 0.5


def test_rows_do_not_see_each_other():
    g = torch.Generator().manual_seed(1)
    logits, numbers = torch.randn(5, 30, generator=g), uniforms(5)
    for settings in ({}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}):
        cfg = SamplingConfig(**settings)
        alone = [int(sample(logits[i : i + 1], cfg, numbers[i : i + 1])) for i in range(5)]
        assert sample(logits, cfg, numbers).tolist() == alone


def test_ties_at_the_edge_of_top_k_are_all_kept():
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(600, 4)
    drawn = sample(logits, SamplingConfig(top_k=2), uniforms(600))
    assert sorted(drawn.unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 1e-320, 5e-324])
@pytest.mark.parametrize("top", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_tiny_temperatures_take_the_likeliest(temperature, top):
    logits = torch.tensor([[3.0, -4.0, 2.0, -torch.inf], [-9.0, -4.0, -4.0001, -5.0]])
    cold = SamplingConfig(temperature=temperature, **top)
    assert sample(logits, cold, uniforms(2)).tolist() == [0, 1]


def test_a_penalty_as_in_transformers():
    stock = pytest.importorskip("transformers").generation.logits_process
    logits = torch.tensor([2.0, -2.0, 0.5, -0.5, 1.0])
    seen = [0, 1, 1, 3]
    want = stock.RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([seen]), logits[None].clone())
    penalize(logits, torch.tensor(seen), 1.5)
    torch.testing.assert_close(logits, want[0])
    assert logits.tolist() == pytest.approx([2 / 1.5, -3.0, 0.5, -0.75, 1.0])


def test_logprobs_by_hand():
    found = logprobs(PROBS.log() + 7, 2, 2)
    assert found.logprob == pytest.approx(math.log(0.15), abs=1e-6)
    assert [token for token, _ in found.top] == [0, 1]
    assert [nats for _, nats in found.top] == pytest.approx([math.log(0.5), math.log(0.25)])
    assert logprobs(PROBS.log(), 0, 0).top == ()
    assert len(logprobs(PROBS.log(), 0, 99).top) == 4


@pytest.fixture
def in_blocks(monkeypatch):
    """As for many logits, though there are few."""
    monkeypatch.setattr(sampler, "MIN_BLOCKED", 0)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("n_tokens", [1, 127, 128, 129, 639, 640, 5000])
@pytest.mark.parametrize("n_values", [1, 2, 50, 10**6])
def test_the_likeliest_token_is_the_first_of_the_largest(n_tokens, n_values):
    g = torch.Generator().manual_seed(n_tokens)
    logits = torch.randint(0, n_values, (4, n_tokens), generator=g).float()
    logits[3] = -torch.inf
    values, tokens = likeliest(logits)
    np.testing.assert_array_equal(tokens, logits.numpy().argmax(axis=1))
    np.testing.assert_array_equal(values, logits.numpy().max(axis=1))


@pytest.mark.usefixtures("in_blocks")
def test_a_row_that_is_no_number_is_told_from_others():
    logits = torch.zeros(2, 1000)
    logits[0, 700], logits[1, 900] = torch.nan, 1.0
    values, tokens = likeliest(logits)
    assert values.isnan().tolist() == [True, False] and tokens.tolist() == [700, 900]
