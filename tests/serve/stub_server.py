"""A server on loopback whose model is a stub: it writes the alphabet, and takes as long as told."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import torch
from byte_tokens import byte_tokenizer

from mixlab.data.chat.templates import TEMPLATES, ChatFormat
from mixlab.infer.engine import Engine
from mixlab.serve.app import make_app
from mixlab.serve.metrics import Metrics
from mixlab.serve.server import _listen, _Server
from mixlab.serve.service import Card, Service
from mixlab.serve.settings import ServeSettings
from mixlab.serve.worker import Worker

TOKENIZER = byte_tokenizer()
BOOM = "!"
"""A prompt that ends in it makes the stub fail."""


class Alphabet:
    """After a letter comes the next one, for certain; `a` follows `z` and all else."""

    prompt_tokens = 16_384

    def __init__(self, context: int = 64, step_s: float = 0.0) -> None:
        self.context, self.step_s = context, step_s
        self.next_of = torch.full((TOKENIZER.vocab_size,), TOKENIZER.encode("a")[0])
        letters = TOKENIZER.encode("abcdefghijklmnopqrstuvwxyz")
        for here, there in itertools.pairwise(letters):
            self.next_of[here] = there
        self.n_steps = 0

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(tokens), TOKENIZER.vocab_size)
        logits.scatter_(1, self.next_of[torch.tensor(tokens)][:, None], 60.0)
        return logits

    def read(self, row: int, prompts: Any) -> torch.Tensor:
        if any(prompt[-1] == TOKENIZER.encode(BOOM)[0] for prompt in prompts):
            raise RuntimeError("out of memory")
        return self._logits([prompt[-1] for prompt in prompts])

    def step(self, tokens: Any) -> torch.Tensor:
        time.sleep(self.step_s)
        self.n_steps += 1
        return self._logits(list(tokens))

    def move(self, source: int, target: int) -> None:
        pass

    def state_bytes(self, n_rows: int) -> int:
        return n_rows


class Served:
    """A running server and ways to talk to it."""

    def __init__(self, url: str, service: Service, model: Alphabet, token: str | None) -> None:
        self.url, self.service, self.model, self.worker = url, service, model, service.worker
        self.wait_until = wait_until
        self.http = httpx.Client(base_url=url, timeout=20, headers=_bearer(token))
        self.openai = openai.OpenAI(
            base_url=f"{url}/v1", api_key=token or "none", max_retries=0, timeout=20
        )


def make_service(
    settings: ServeSettings | None = None, *, context: int = 64, step_s: float = 0.0,
    is_tuned: bool = True,
) -> tuple[Service, Alphabet]:  # fmt: skip
    settings, model, metrics = settings or ServeSettings(), Alphabet(context, step_s), Metrics()
    worker = Worker(
        lambda: Engine(model, TOKENIZER, max_rows=settings.max_rows),
        max_queue=settings.max_queue,
        metrics=metrics,
    )
    metrics.watch(lambda: worker.n_live, lambda: worker.n_open)
    service = Service(
        card=Card("alphabet", 1, {"step": 7}),
        tokenizer=TOKENIZER,
        encode=TOKENIZER.encode,
        chat=ChatFormat(TEMPLATES["plain"], TOKENIZER, is_tuned=is_tuned),
        worker=worker,
        settings=settings,
        metrics=metrics,
    )
    return service, model


@contextmanager
def listening(
    service: Service, token: str | None = None, *, is_local: bool = False
) -> Iterator[str]:
    """Serves on a free port of loopback, whose address is given, until the block ends."""
    listener = _listen("127.0.0.1", 0)
    server = _Server(make_app(service, token, is_local=is_local), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def served(
    settings: ServeSettings | None = None, *, token: str | None = None, **stub: Any
) -> Iterator[Served]:
    """A server with a stub as its model."""
    service, model = make_service(settings, **stub)
    with listening(service, token) as url:
        found = Served(url, service, model, token)
        try:
            yield found
        finally:
            found.http.close()
            found.openai.close()


def wait_until(holds: Any, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
