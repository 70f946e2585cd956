"""Requests that join and leave between steps: each gets what it would get alone."""

import pytest
import torch
from infer.decoding_models import roughened, shrunk_models, small
from tiny_mixers import SEQUENCE

from mixlab.core.errors import LabError
from mixlab.infer.decoding.row_model import row_model
from mixlab.infer.engine import Engine, Request, run_all
from mixlab.infer.sampler import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
RECIPES = shrunk_models()


class Letters:
    """Ids are letters; 28 is the end of text."""

    eos_id, vocab_size = 28, 29

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i != self.eos_id)


@pytest.fixture(scope="module")
def model():
    return roughened(small({"kind": "attention", **SEQUENCE["attention"]["plain"]}))


def engine_for(model, **settings):
    return Engine(row_model(model), Letters(), **settings)


def answers(engine, requests, *, every=1):
    """Tokens and events of each request, one added every so many steps."""
    waiting, keys, events = list(requests), [], {}
    n_steps = 0
    while waiting or engine.n_live or engine.n_waiting:
        if waiting and n_steps % every == 0:
            keys.append(engine.add(waiting.pop(0)))
        for event in engine.step():
            events.setdefault(event.key, []).append(event)
        n_steps += 1
        assert engine.n_live <= engine.max_rows
    return [events[key] for key in keys]


def tokens(events):
    return [event.token for event in events if event.token is not None]


def mixed_requests():
    """Greedy and not, with every filter, of several lengths."""
    settings = [
        GREEDY,
        SamplingConfig(temperature=1.2),
        SamplingConfig(temperature=0.9, top_k=5),
        SamplingConfig(temperature=1.1, top_p=0.8, min_p=0.02),
        SamplingConfig(temperature=0.8, repetition_penalty=1.4),
        SamplingConfig(temperature=0.9, top_k=5),
    ]
    return [
        Request([1 + i] * (1 + 4 * i), 5 + 3 * i, sampling, seed=i, ignore_eos=True)
        for i, sampling in enumerate(settings)
    ]


@pytest.mark.parametrize("name", ["quickstart", "hybrid-sparse", "attention-mlp", "moe"])
@pytest.mark.parametrize(("every", "max_rows"), [(1, 8), (3, 2)])
def test_a_text_does_not_depend_on_its_batch_mates(name, every, max_rows):
    model = roughened(RECIPES[name], torch.float32)

    class Words(Letters):
        vocab_size = model.cfg.vocab_size

    alone = []
    for request in mixed_requests():
        engine = Engine(row_model(model), Words(), max_rows=1)
        alone += answers(engine, [request])
    engine = Engine(row_model(model), Words(), max_rows=max_rows)
    together = answers(engine, mixed_requests(), every=every)
    assert [tokens(events) for events in together] == [tokens(events) for events in alone]
    for request, events in zip(mixed_requests(), together, strict=True):
        assert len(tokens(events)) == request.max_new_tokens
        assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish == "length"


def test_a_seed_decides(model):
    warm = SamplingConfig(temperature=1.5)
    requests = [Request([1, 2], 12, warm, seed, ignore_eos=True) for seed in (0, 1, 0)]
    first, second, third = map(tokens, answers(engine_for(model), requests))
    assert first == third != second


def test_the_end_of_text(model):
    greedy = Request([3, 1], 20, GREEDY, ignore_eos=True)
    (whole,) = answers(engine_for(model), [greedy])
    ids = tokens(whole)
    stop = ids[6]
    request = Request([3, 1], 20, GREEDY, ignore_eos=True, stop_ids=frozenset([stop]))
    (events,) = answers(engine_for(model), [request])
    assert tokens(events) == ids[: ids.index(stop)]
    assert events[-1].finish == "stop" and events[-1].token is None
    assert "".join(event.text for event in events) == Letters().decode(ids[: ids.index(stop)])


def test_stop_strings(model):
    greedy = Request([3, 1], 20, GREEDY, ignore_eos=True)
    (whole,) = answers(engine_for(model), [greedy])
    text = "".join(event.text for event in whole)
    stop = text[5:8]
    request = Request([3, 1], 20, GREEDY, ignore_eos=True, stop=(stop,))
    (events,) = answers(engine_for(model), [request])
    assert "".join(event.text for event in events) == text[: text.index(stop)]
    assert events[-1].finish == "stop"


def test_an_empty_prompt_begins_a_document(model):
    (found,) = answers(engine_for(model), [Request([], 6, GREEDY)])
    (want,) = answers(engine_for(model), [Request([Letters.eos_id], 6, GREEDY)])
    assert tokens(found) == tokens(want)


def test_logprobs_are_those_of_the_whole_text(model):
    penalized = SamplingConfig(temperature=0.7, top_k=3, repetition_penalty=2.0)
    request = Request([3, 1], 4, penalized, n_logprobs=2, ignore_eos=True)
    (events,) = answers(engine_for(model), [request])
    text = [3, 1]
    for event in events:
        nats = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        assert event.logprobs.logprob == pytest.approx(nats[event.token].item(), abs=1e-6)
        values, ids = nats.topk(2)
        assert [token for token, _ in event.logprobs.top] == ids.tolist()
        assert [v for _, v in event.logprobs.top] == pytest.approx(values.tolist(), abs=1e-6)
        text.append(event.token)


def test_requests_can_be_taken_back(model):
    engine = engine_for(model, max_rows=2)
    requests = [Request([i + 1] * (i + 1), 10, GREEDY, ignore_eos=True) for i in range(4)]
    want = answers(engine_for(model), requests)
    keys = [engine.add(request) for request in requests]
    assert engine.n_waiting == 4
    found = {key: [] for key in keys}

    def each(event):
        found[event.key].append(event)

    for event in engine.step():
        each(event)
    assert engine.n_live == 2 and engine.n_waiting == 2
    assert engine.remove(keys[0]) and engine.remove(keys[2])
    assert not engine.remove(keys[0]) and not engine.remove(99)
    run_all(engine, each)
    assert len(tokens(found[keys[0]])) == 1 and not found[keys[2]]
    for i in (1, 3):
        assert tokens(found[keys[i]]) == tokens(want[i])
    assert engine.n_live == 0 and engine.state_bytes == 0 and engine.step() == []


def test_a_model_that_gives_no_numbers_ends_its_own_request_alone(model):
    engine = engine_for(model)
    read = engine._model.read

    def broken(row, prompts):
        is_bad = torch.tensor([list(prompt) == [2] for prompt in prompts])
        return read(row, prompts).masked_fill(is_bad[:, None], torch.nan)

    engine._model.read = broken
    first, second = answers(engine, [Request([2], 5, GREEDY), Request([3], 5, GREEDY)])
    assert [event.finish for event in first] == ["error"] and "not finite" in first[0].message
    assert len(tokens(second)) == 5


def test_a_long_prompt_loses_its_beginning_only_when_asked(model):
    prompt = [i % 28 for i in range(100)]
    engine = engine_for(model)
    with pytest.raises(LabError, match="prompt of 100 tokens"):
        engine.add(Request(prompt, 10))
    kept, n_dropped = engine.fit(Request(prompt, 10, window=True))
    assert list(kept) == prompt[46:] and n_dropped == 46
    (found,) = answers(engine, [Request(prompt, 10, GREEDY, window=True)])
    (want,) = answers(engine, [Request(prompt[46:], 10, GREEDY)])
    assert tokens(found) == tokens(want)
    with pytest.raises(LabError, match="at most model"):
        engine.add(Request([1], 64, window=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": [29]}, "prompt with token 29: expected ids from 0 to 28"),
        ({"prompt": [1, -1]}, "prompt with token -1"),
        ({"prompt": [1, 2**70]}, "prompt with token 1180591620717411303424"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"max_new_tokens": True}, "max_new_tokens = True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens = 2.5"),
        ({"seed": -1}, "seed = -1"),
        ({"n_logprobs": -1}, "n_logprobs = -1"),
        ({"prompt": [1] * 64}, "prompt of 64 tokens: expected fewer than model.max_seq_len = 64"),
    ],
    ids=str,
)
def test_what_no_request_may_be(model, settings, message):
    with pytest.raises(LabError, match=message):
        engine_for(model).add(Request(**{"prompt": [1], "max_new_tokens": 3} | settings))


def test_rows_are_at_least_one(model):
    with pytest.raises(LabError, match="max_rows = 0"):
        engine_for(model, max_rows=0)
