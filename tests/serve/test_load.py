"""Many clients at once: every answer is complete, its own, and counted."""

import asyncio
import re

import httpx
from stub_server import served

from mixlab.serve.settings import ServeSettings

N_CLIENTS, N_REQUESTS = 16, 80
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_nothing_gets_lost_in_a_crowd():
    with served(ServeSettings(max_rows=4, max_queue=N_CLIENTS)) as server:
        answers = asyncio.run(crowd(server.url))
        text = server.http.get("/metrics").text
        assert server.worker.n_open == 0
    assert len(answers) == N_REQUESTS
    n_tokens = 0
    for number, (status, body) in answers.items():
        start, length = number % 26, 1 + number % 30
        expected = "".join(LETTERS[(start + 1 + i) % 26] for i in range(length))
        assert status == 200, body
        assert body["choices"][0]["text"] == expected, number
        n_tokens += body["usage"]["completion_tokens"]
    (counted,) = re.findall(r"^mixlab_new_tokens_total (\S+)$", text, re.M)
    assert float(counted) == n_tokens
    (steps,) = re.findall(r"^mixlab_engine_steps_total (\S+)$", text, re.M)
    assert n_tokens / float(steps) > 2  # rows were shared, or there would be one token per step


async def crowd(url):
    answers, numbers = {}, iter(range(N_REQUESTS))

    async def client():
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for number in numbers:
                body = {
                    "model": "alphabet", "prompt": LETTERS[number % 26], "temperature": 0,
                    "max_tokens": 1 + number % 30,
                }  # fmt: skip
                answer = await http.post("/v1/completions", json=body)
                answers[number] = (answer.status_code, answer.json())

    await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return answers
