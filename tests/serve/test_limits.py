"""Limits of a server: who may ask, how much, how long, and what happens to those who leave."""

import re
import threading

import httpx
import openai
import pytest
from stub_server import listening, make_service, served

from mixlab.core.config import decode
from mixlab.core.errors import LabError
from mixlab.serve.server import _listen, check_address
from mixlab.serve.settings import ServeSettings

TOKEN = "correct horse"
BODY = {"model": "alphabet", "prompt": "abc", "temperature": 0}


def metric(server, name):
    text = server.http.get("/metrics").text
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
    return sum(map(float, found))


# --- who may ask ----------------------------------------------------------------------------------


def test_a_token_is_asked_for():
    with served(token=TOKEN) as server:
        for header in ({}, {"Authorization": "Bearer wrong horse"}, {"Authorization": TOKEN},
                       {"Authorization": "Basic " + TOKEN}, {"Authorization": "Bearer"},
                       {"Authorization": "Bearer correct hors\xe9".encode("latin-1")}):  # fmt: skip
            answer = httpx.get(f"{server.url}/v1/models", headers=header)
            assert answer.status_code == 401, header
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/docs").status_code == 401
        assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
        assert server.openai.completions.create(**BODY, max_tokens=2).choices[0].text == "de"
        with pytest.raises(openai.AuthenticationError):
            server.openai.with_options(api_key="another").models.list()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:9", 200),
        ("evil.example", 421), ("localhost.evil.example:8000", 421), ("[", 421), ("10.0.0.1", 421),
    ],
)  # fmt: skip
def test_a_local_server_answers_for_this_machine_only(host, status):
    service, _ = make_service()
    with listening(service, is_local=True) as url:
        assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host):
    check_address(host, None, without_token=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "127.0.0.1.nip.io", ""]
)
def test_other_addresses_need_one(host):
    with pytest.raises(LabError, match="expected a loopback address such as"):
        check_address(host, None, without_token=False)
    check_address(host, None, without_token=True)
    check_address(host, "long enough", without_token=False)


@pytest.mark.parametrize("token", ["short", "", "blank at end ", "ümlaut ümlaut", "line\nbreak123"])
def test_tokens_that_cannot_be_sent_or_are_easily_guessed_are_refused(token):
    with pytest.raises(LabError, match="--token"):
        check_address("0.0.0.0", token, without_token=False)


def test_a_port_that_is_taken_is_an_error_of_the_user():
    listener = _listen("127.0.0.1", 0)
    listener.listen()
    port = listener.getsockname()[1]
    with pytest.raises(
        LabError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use"
    ):
        _listen("127.0.0.1", port)
    listener.close()
    with pytest.raises(LabError, match="--port = 70000: expected 0 to 65535"):
        _listen("127.0.0.1", 70_000)


def test_settings_out_of_range_are_refused():
    for name, value in (("max_rows", 0), ("max_queue", -1), ("timeout_s", 0.0)):
        with pytest.raises(LabError, match=f"{name} = "):
            decode(ServeSettings, {name: value})


# --- how much -------------------------------------------------------------------------------------


def test_a_body_that_is_too_large():
    with served(ServeSettings(max_body_bytes=1000)) as server:
        large = {**BODY, "prompt": "x" * 10_000_000}
        answer = server.http.post("/v1/completions", json=large)
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in answer.json()["error"]["message"]

        def pieces():  # of unknown length
            for _ in range(50):
                yield b" " * 100

        assert server.http.post("/v1/completions", content=pieces()).status_code == 413
        assert server.http.post("/v1/completions", json=BODY).status_code == 200


def test_limits_of_tokens():
    settings = ServeSettings(max_prompt_tokens=5, max_new_tokens=7)
    with served(settings) as server:
        with pytest.raises(openai.BadRequestError, match="prompt of 6 tokens: expected at most 5"):
            server.openai.completions.create(**{**BODY, "prompt": "abcdef"}, max_tokens=1)
        with pytest.raises(openai.BadRequestError, match="max_tokens = 8: expected at most 7"):
            server.openai.completions.create(**BODY, max_tokens=8)
        messages = [{"role": "user", "content": "abc"}]
        found = server.openai.chat.completions.create(
            model="alphabet", messages=messages, temperature=0
        )
        assert found.choices[0].message.content == "abcdefg"


def test_a_full_queue_refuses_and_says_when_to_come_back():
    with served(ServeSettings(max_rows=1, max_queue=1), step_s=0.02, context=4000) as server:
        streams = [
            server.openai.completions.create(**BODY, max_tokens=3000, stream=True) for _ in range(2)
        ]  # one row, one in the queue
        server.wait_until(lambda: server.worker.n_live == 1 and server.worker.n_open == 2)
        answer = server.http.post("/v1/completions", json=BODY)
        assert answer.status_code == 429
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        with pytest.raises(openai.RateLimitError):
            server.openai.completions.create(**BODY)
        assert metric(server, "mixlab_refused_total") == 2
        for stream in streams:
            stream.close()
        server.wait_until(lambda: server.worker.n_open == 0)
        assert server.http.post("/v1/completions", json=BODY).status_code == 200


def test_the_queue_takes_all_answers_of_a_request_or_none():
    with served(ServeSettings(max_rows=1, max_queue=1)) as server:
        assert server.http.post("/v1/completions", json={**BODY, "n": 3}).status_code == 429
        assert server.http.post("/v1/completions", json={**BODY, "n": 2}).status_code == 200


# --- how long, and those who leave ----------------------------------------------------------------


def test_an_answer_that_takes_too_long():
    with served(ServeSettings(timeout_s=1.5), step_s=0.02, context=4000) as server:
        answer = server.http.post("/v1/completions", json={**BODY, "max_tokens": 3000})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with pytest.raises(openai.APIError, match="The answer took longer than"):
            list(server.openai.completions.create(**BODY, max_tokens=3000, stream=True))
        server.wait_until(lambda: server.worker.n_open == 0)
        assert (
            server.http.post("/v1/completions", json={**BODY, "max_tokens": 2}).status_code == 200
        )


def test_a_client_that_sends_too_slowly():
    with served(ServeSettings(body_timeout_s=0.2)) as server:
        blocked = threading.Event()

        def pieces():
            yield b'{"model": '
            blocked.wait(5)
            yield b'"alphabet"}'

        def unblock():
            server.wait_until(lambda: 'status="408"' in server.http.get("/metrics").text)
            blocked.set()

        helper = threading.Thread(target=unblock)
        helper.start()
        with httpx.Client(base_url=server.url) as other:
            answer = other.post("/v1/completions", content=pieces())
        helper.join()
        assert answer.status_code == 408


def test_a_client_that_leaves_a_stream_frees_its_row():
    with served(ServeSettings(max_rows=1), step_s=0.01, context=4000) as server:
        stream = server.openai.completions.create(**BODY, max_tokens=3900, stream=True)
        next(iter(stream))
        assert server.worker.n_live == 1
        stream.close()
        server.wait_until(lambda: server.worker.n_live == 0)
        assert server.model.n_steps < 3000
        assert metric(server, "mixlab_cancelled_answers_total") == 1


def test_a_client_that_leaves_without_an_answer_frees_its_rows():
    with served(ServeSettings(max_rows=2), step_s=0.01, context=4000) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/completions",
                json={**BODY, "max_tokens": 3900, "n": 3},  # two in rows, one waiting
                timeout=0.3,
            )
        server.wait_until(lambda: server.worker.n_open == 0)
        assert server.model.n_steps < 3000
        assert metric(server, "mixlab_cancelled_answers_total") == 3


def test_requests_join_and_leave_between_steps():
    """A short request that comes later is answered while a long one is being written."""
    with served(ServeSettings(max_rows=2), step_s=0.01, context=4000) as server:
        stream = server.openai.completions.create(**BODY, max_tokens=3900, stream=True)
        long = iter(stream)
        next(long)
        assert server.openai.completions.create(**BODY, max_tokens=3).choices[0].text == "def"
        assert server.worker.n_live == 1
        next(long)
        stream.close()


def test_metrics_and_health():
    with served() as server:
        server.openai.completions.create(**BODY, max_tokens=5)
        server.http.post("/v1/completions", json={})
        assert server.http.get("/health").json() == {"status": "ok", "live": 0, "open": 0}
        server.http.get("/../../etc/passwd")
        text = server.http.get("/metrics").text
        assert 'mixlab_requests_total{endpoint="/v1/completions",status="200"} 1.0' in text
        assert 'mixlab_requests_total{endpoint="/v1/completions",status="400"} 1.0' in text
        assert 'endpoint="other",status="404"' in text and "passwd" not in text
        assert metric(server, "mixlab_new_tokens_total") == 5
        assert metric(server, "mixlab_prompt_tokens_total") == 3
        assert metric(server, "mixlab_first_token_seconds_count") == 1


def test_answers_under_way_may_end_when_the_server_stops():
    with served(step_s=0.01, context=400) as server:
        stream = iter(server.openai.completions.create(**BODY, max_tokens=60, stream=True))
        next(stream)
        server.worker.refuse_new()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            server.openai.completions.create(**BODY)
        assert len(list(stream)) == 59
