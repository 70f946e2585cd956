"""The official client against a server on loopback."""

import json

import openai
import pytest
from stub_server import BOOM, served

MODEL = "alphabet"


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


def complete(server, **settings):
    return server.openai.completions.create(
        **{"model": MODEL, "prompt": "abc", "temperature": 0, **settings}
    )


def chat(server, **settings):
    messages = [{"role": "user", "content": "abc"}]
    return server.openai.chat.completions.create(
        **{"model": MODEL, "messages": messages, "temperature": 0, **settings}
    )


def test_models(server):
    (model,) = server.openai.models.list().data
    assert model.id == MODEL and model.model_extra["mixlab"] == {"step": 7}
    assert server.openai.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt-9")


def test_a_completion(server):
    found = complete(server, max_tokens=5)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("defgh", "length", None)
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 5, 8)
    assert found.object == "text_completion" and found.model == MODEL
    assert complete(server).usage.completion_tokens == 16  # the default of the API


def test_streamed_completions_are_the_whole_ones_in_pieces(server):
    chunks = list(complete(server, max_tokens=6, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "defghi"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 5 + ["length"]
    assert len({c.id for c in chunks}) == 1
    options = {"include_usage": True}
    *_, last = complete(server, max_tokens=6, stream=True, stream_options=options)
    assert last.choices == [] and last.usage.total_tokens == 9


def test_several_prompts_and_answers(server):
    found = complete(server, prompt=["ab", "xy"], n=2, max_tokens=2)
    assert [c.text for c in found.choices] == ["cd", "cd", "za", "za"]
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert found.usage.prompt_tokens == 4 and found.usage.completion_tokens == 8
    texts = {0: "", 1: "", 2: "", 3: ""}
    for chunk in complete(server, prompt=["ab", "xy"], n=2, max_tokens=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "cd", 1: "cd", 2: "za", 3: "za"}


def test_tokens_as_prompt(server):
    ids = server.service._tokenizer.encode("abc")
    assert complete(server, prompt=ids, max_tokens=1).choices[0].text == "d"
    assert complete(server, prompt=[ids, ids], max_tokens=1).choices[1].text == "d"
    assert complete(server, prompt="", max_tokens=1).choices[0].text == "a"


def test_stop_strings_end_an_answer_and_are_no_part_of_it(server):
    for stop in ("gh", ["zz", "gh"]):
        choice = complete(server, stop=stop, max_tokens=20).choices[0]
        assert (choice.text, choice.finish_reason) == ("def", "stop")
    chunks = list(complete(server, stop="gh", max_tokens=20, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "def"


def test_log_probabilities(server):
    found = complete(server, max_tokens=3, logprobs=2).choices[0].logprobs
    assert found.tokens == ["d", "e", "f"] and found.text_offset == [0, 1, 2]
    # The stub gives its token 60 nats more than each of the others.
    assert found.token_logprobs == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(len(top) == 2 and max(top, key=top.get) in "def" for top in found.top_logprobs)
    assert complete(server, max_tokens=1, logprobs=0).choices[0].logprobs.top_logprobs is None
    (entry,) = chat(server, max_tokens=1, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert entry.token == "a" and entry.bytes == [97] and len(entry.top_logprobs) == 3
    streamed = chat(server, max_tokens=4, logprobs=True, stream=True)
    tokens = [
        entry.token
        for chunk in streamed
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert tokens == list("abcd")


def test_a_chat(server):
    found = chat(server, max_tokens=4)
    assert found.choices[0].message.content == "abcd"  # the template ends the prompt's line
    assert found.choices[0].message.role == "assistant"
    assert found.object == "chat.completion"
    parts = [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]
    again = chat(server, messages=parts, max_completion_tokens=4)
    assert again.choices[0].message.content == "abcd"
    assert again.usage.prompt_tokens == found.usage.prompt_tokens
    # Without a limit, an answer goes on to the end of the context.
    assert chat(server).usage.total_tokens == 64


def test_a_streamed_chat(server):
    first, *rest = chat(server, max_tokens=3, stream=True)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in rest) == "abc"
    assert rest[-1].choices[0].finish_reason == "length"


def test_a_seed_gives_the_same_text(server):
    def text(**settings):
        settings = {"temperature": 2, "top_p": 1, "max_tokens": 12, **settings}
        return [c.text for c in complete(server, **settings).choices]

    warm = {"extra_body": {"repetition_penalty": 9.9}}  # makes the stub's choice less certain
    assert text(seed=5, **warm) == text(seed=5, **warm)
    assert text(seed=-3, n=2, **warm)[1] == text(seed=-2, **warm)[0]


def test_fields_of_other_servers(server):
    body = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0}
    assert complete(server, max_tokens=2, temperature=2, extra_body=body).choices[0].text == "de"
    harmless = {"frequency_penalty": 0, "presence_penalty": 0, "best_of": 1, "echo": False}
    assert complete(server, max_tokens=1, **harmless).choices[0].text == "d"


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "is not supported by this server"),
        ({"logit_bias": {"5": 3}}, "logit_bias", "is not supported"),
        ({"echo": True}, "echo", "is not supported"),
        ({"best_of": 3}, "best_of", "is not supported"),
        ({"extra_body": {"temprature": 1}}, "temprature", "Did you mean 'temperature'?"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens: input should be greater than or equal"),
        ({"max_tokens": 100}, "prompt", "at most 61 tokens"),
        ({"prompt": "a" * 70}, "prompt", "prompt of 70 tokens: expected fewer than"),
        ({"prompt": [5, 99999]}, "prompt", "prompt with token 99999: expected ids from 0 to"),
        ({"prompt": []}, "prompt", "expected at least one"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "expected at most 16, the limit of this server"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only together with"),
        ({"prompt": None, "extra_body": {"prompt": {"a": 1}}}, "prompt", "valid string"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server, settings, param, words):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(server, **settings)
    error = refused.value.body
    assert error["param"] == param and words in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages", "'system', 'developer'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "one of user is due"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "an empty message"),
        ({"top_logprobs": 2}, "top_logprobs", "only together with logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "the same as"),
    ],
)
def test_chats_that_cannot_be_answered_are_refused_by_name(server, settings, param, words):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(server, **settings)
    assert refused.value.body["param"] == param, refused.value.body
    assert words in refused.value.body["message"], refused.value.body


def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(server):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(server, prompt="a" * 70)
    assert refused.value.code == "context_length_exceeded"


def test_an_unknown_model_and_path(server):
    with pytest.raises(openai.NotFoundError, match="expected 'alphabet'"):
        complete(server, model="gpt-9")
    answer = server.http.get("/v2/nothing")
    assert answer.status_code == 404 and "/v2/nothing" in answer.json()["error"]["message"]
    assert server.http.get("/v1/completions").status_code == 405


def test_bodies_that_are_no_request(server):
    for content, words in (
        (b"{", "not valid JSON"),
        (b"", "JSON object"),
        (b"[1]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"\xff\xfe", "body"),
        (b'{"model": "alphabet", "prompt": "\\ud800"}', "not valid Unicode"),
        (b"[" * 100_000, "body"),
    ):
        answer = server.http.post(
            "/v1/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, content[:20]
        assert words in answer.json()["error"]["message"], answer.text[:300]
    plain = server.http.post("/v1/completions", content=json.dumps({"model": MODEL}))
    assert plain.status_code == 400  # no page in a browser may send this without asking


def test_a_model_that_fails_fails_one_request_and_answers_the_next(server):
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        complete(server, prompt=f"ab{BOOM}")
    assert complete(server, max_tokens=2).choices[0].text == "de"
    with pytest.raises(openai.APIError, match="out of memory"):
        list(complete(server, prompt=f"ab{BOOM}", stream=True))
    assert server.worker.n_open == 0
