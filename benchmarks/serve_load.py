"""Load test of `mixlab serve` on this machine: many clients at once, nothing may get lost.

Starts a server for the run on a free port of loopback, lets CLIENTS clients send REQUESTS streamed
requests as fast as they are answered, and checks every answer: it has to be complete, to have as
many tokens as the server counted, and to equal the answer that the same request gets alone.

    python benchmarks/serve_load.py runs/quickstart
    python benchmarks/serve_load.py runs/quickstart --clients 64 --requests 500 --max-tokens 32
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import httpx

PROMPTS = (
    "import os\n", "def main(", "class Reader:\n    def __init__(self", "for i in range(",
    "# The following\n", "    return self._", "try:\n    import", "from collections", "x", "",
)  # fmt: skip
LONG = "def value(self):\n    return self._value\n\n"
N_ALONE = 5
"""Requests that are repeated one at a time, to compare with what they got in the crowd."""


class Answer(NamedTuple):
    status: int
    text: str
    n_tokens: int
    first_s: float  # to the first piece of text
    total_s: float


def request(number: int, model: str, max_tokens: int) -> dict:
    """Different lengths of prompt and answer, drawn greedily or with a seed."""
    prompt = PROMPTS[number % len(PROMPTS)] + LONG * (number % 4)
    return {
        "model": model, "prompt": prompt, "max_tokens": 1 + number * 7 % max_tokens,
        "temperature": 0.0 if number % 2 else 0.9, "seed": number, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


async def ask(client: httpx.AsyncClient, body: dict) -> Answer:
    start = time.perf_counter()
    text, n_tokens, first = "", -1, 0.0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        is_complete = False
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                is_complete = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                return Answer(500, event["error"]["message"], -1, 0.0, 0.0)
            for choice in event["choices"]:
                first = first or time.perf_counter() - start
                text += choice["text"]
            if event.get("usage"):
                n_tokens = event["usage"]["completion_tokens"]
    status = response.status_code if is_complete or response.status_code != 200 else 0
    return Answer(status, text, n_tokens, first, time.perf_counter() - start)


async def crowd(url: str, model: str, n_clients: int, n_requests: int, max_tokens: int):
    """Every client asks, waits for the whole answer, and asks again."""
    answers: dict[int, Answer] = {}
    numbers = iter(range(n_requests))

    async def client_loop() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for number in numbers:
                answers[number] = await ask(client, request(number, model, max_tokens))

    start = time.perf_counter()
    await asyncio.gather(*(client_loop() for _ in range(n_clients)))
    seconds = time.perf_counter() - start
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        step = max(1, n_requests // N_ALONE)
        alone = {
            number: await ask(client, request(number, model, max_tokens))
            for number in range(0, n_requests, step)
        }
        metrics = (await client.get("/metrics")).text
    return answers, alone, metrics, seconds


def start_server(run: str, n_clients: int, rows: int) -> tuple[subprocess.Popen, str, str]:
    command = [sys.executable, "-m", "mixlab", "serve", run, "--port", "0", "--host", "127.0.0.1"]
    command += ["--max-rows", str(rows), "--max-queue", str(n_clients)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        found = re.search(r"Serving (\S+) at (http://127\.0\.0\.1:\d+)/v1", line)
        if found:
            return process, found[2], found[1]
    sys.exit(f"the server did not start:\n{said}")


def percentiles(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return (
        "  ".join(f"p{p} {cuts[p - 1]:.3f} s" for p in (50, 90, 95, 99))
        + f"  max {max(values):.3f} s"
    )


def counter(metrics: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.M)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--rows", type=int, default=16, help="answers written at the same time")
    given = parser.parse_args()
    process, url, model = start_server(given.run, given.clients, given.rows)
    try:
        answers, alone, metrics, seconds = asyncio.run(
            crowd(url, model, given.clients, given.requests, given.max_tokens)
        )
    finally:
        process.send_signal(2)
        process.communicate(timeout=60)
    good = [a for a in answers.values() if a.status == 200 and a.n_tokens >= 0]
    n_tokens = sum(a.n_tokens for a in good)
    n_counted = int(counter(metrics, "mixlab_new_tokens_total")) - sum(
        a.n_tokens for a in alone.values()
    )
    same = sum(answers[number].text == a.text for number, a in alone.items())
    print(f"{given.clients} clients, {given.requests} requests, {given.rows} rows, {seconds:.1f} s")
    print(f"lost               {given.requests - len(good)}")
    print(f"tokens written     {n_tokens} (the server counted {n_counted})")
    print(f"as when alone      {same} of {len(alone)}")
    print(f"requests/s         {len(good) / seconds:.1f}")
    print(f"tokens/s           {n_tokens / seconds:.0f}")
    n_steps = counter(metrics, "mixlab_engine_steps_total")
    print(f"tokens per step    {n_counted / max(1, n_steps):.1f}")
    print(f"first text         {percentiles([a.first_s for a in good if a.text])}")
    print(f"whole answer       {percentiles([a.total_s for a in good])}")
    return int(len(good) < given.requests or n_tokens != n_counted or same < len(alone))


if __name__ == "__main__":
    sys.exit(main())
