"""From a client's request to its answer: checks, the worker's queue, whole answers and streams."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mixlab.core.errors import LabError
from mixlab.data.chat.messages import Message
from mixlab.data.chat.templates import ChatFormat
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.infer.engine import Event, Request
from mixlab.infer.sampler import SamplingConfig
from mixlab.serve.answers import ChatForm, CompletionForm, Drawn, Form
from mixlab.serve.errors import ApiError, broken, busy, closing, sse, too_slow
from mixlab.serve.metrics import Metrics
from mixlab.serve.requests import ChatRequest, CompletionRequest, Sampled
from mixlab.serve.settings import ServeSettings
from mixlab.serve.worker import Busy, Choice, Closing, Ticket, Worker


class Card(NamedTuple):
    """What is said of the model in /v1/models."""

    name: str
    created: int  # when the checkpoint was written, in seconds since 1970
    facts: dict[str, Any]


class _Ended(NamedTuple):
    """Stands in a ticket's queue where no more events are waited for."""

    error: ApiError | None  # None: the client has gone


class Service:
    """One model behind an API."""

    def __init__(
        self,
        *,
        card: Card,
        tokenizer: Tokenizer,
        encode: Callable[[str], list[int]],
        chat: ChatFormat,
        worker: Worker,
        settings: ServeSettings,
        metrics: Metrics,
    ) -> None:
        self.card, self.worker, self.settings, self.metrics = card, worker, settings, metrics
        self._tokenizer, self._encode, self._chat = tokenizer, encode, chat

    # --- requests ---------------------------------------------------------------------------

    async def complete(self, http: HttpRequest, body: CompletionRequest) -> Response:
        """The answer to /v1/completions."""
        self._check_model(body.model)
        prompts = body.prompts()
        if not prompts:
            raise ApiError(400, "prompt: expected at least one.", param="prompt")
        self._check_choices(len(prompts) * body.n)
        encoded = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(await self._tokens(lambda text=prompt: self._encode(text), "prompt"))
            else:
                encoded.append(list(prompt))
        requests = [
            self._request(ids, body, body.max_tokens, "prompt", copy, body.logprobs)
            for ids in encoded
            for copy in self._seeds(body)
        ]
        wants_top = bool(body.logprobs)
        form = CompletionForm(self.card.name, self._tokenizer.decode, wants_top)
        return await self._answer(http, body, requests, form, sum(map(len, encoded)))

    async def chat(self, http: HttpRequest, body: ChatRequest) -> Response:
        """The answer to /v1/chat/completions."""
        self._check_model(body.model)
        self._check_choices(body.n)
        messages = [
            Message("system" if m.role == "developer" else m.role, m.text()) for m in body.messages
        ]
        ids = await self._tokens(lambda: self._chat.prompt_ids(messages), "messages")
        room = self.worker.engine.context - len(ids)
        longest = body.longest or max(1, min(room, self.settings.max_new_tokens or room))
        requests = [
            self._request(ids, body, longest, "messages", seed, body.n_logprobs, is_chat=True)
            for seed in self._seeds(body)
        ]
        form = ChatForm(self.card.name, self._tokenizer.decode)
        return await self._answer(http, body, requests, form, len(ids))

    def _check_model(self, name: str) -> None:
        if name != self.card.name:
            raise ApiError(
                404, f"model = {name!r}: expected {self.card.name!r}, the model of this server.",
                param="model", code="model_not_found",
            )  # fmt: skip

    def _check_choices(self, n: int) -> None:
        most = self.settings.max_choices
        if n > most:
            raise ApiError(
                400, f"n = {n} answers in all: expected at most {most}, the limit of this server.",
                param="n",
            )  # fmt: skip

    async def _tokens(self, encode: Callable[[], list[int]], param: str) -> list[int]:
        """Tokenised beside the event loop, as a long text takes its time."""
        try:
            ids = await asyncio.to_thread(encode)
        except LabError as error:
            raise ApiError(400, str(error), param=param) from None
        most = self.settings.max_prompt_tokens
        if most is not None and len(ids) > most:
            raise ApiError(
                400, f"{param} of {len(ids)} tokens: expected at most {most}, the limit of this "
                "server.", param=param, code="context_length_exceeded",
            )  # fmt: skip
        return ids

    @staticmethod
    def _seeds(body: Sampled) -> list[int]:
        """One for each answer to a prompt."""
        first = secrets.randbits(62) if body.seed is None else body.seed
        return [(first + i) % 2**63 for i in range(body.n)]

    def _request(
        self,
        ids: list[int],
        body: Sampled,
        longest: int,
        param: str,
        seed: int,
        n_logprobs: int | None,
        is_chat: bool = False,
    ) -> Request:
        most = self.settings.max_new_tokens
        if most is not None and longest > most:
            raise ApiError(
                400, f"max_tokens = {longest}: expected at most {most}, the limit of this server.",
                param="max_tokens",
            )  # fmt: skip
        sampling = SamplingConfig(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=None if body.top_p == 1 else body.top_p,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
        )
        stop_ids, stop = frozenset[int](), body.stops()
        if is_chat:
            stop_ids, stop = frozenset(self._chat.stop_ids), stop + self._chat.stop_texts
        request = Request(
            prompt=ids, max_new_tokens=longest, sampling=sampling, seed=seed, stop=stop,
            stop_ids=stop_ids, n_logprobs=n_logprobs,
        )  # fmt: skip
        try:
            self.worker.engine.fit(request)
        except LabError as error:
            is_long = len(ids) + longest > self.worker.engine.context
            code = "context_length_exceeded" if is_long else None
            raise ApiError(400, str(error), param=param, code=code) from None
        return request

    # --- answers ----------------------------------------------------------------------------

    async def _answer(
        self,
        http: HttpRequest,
        body: Sampled,
        requests: Sequence[Request],
        form: Form,
        n_prompt: int,
    ) -> Response:
        try:
            ticket = self.worker.submit(requests)
        except Busy as full:
            self.metrics.refused.inc()
            raise busy(full.retry_after_s) from None
        except Closing:
            raise closing() from None
        self.metrics.prompt_tokens.inc(n_prompt)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(
                self._stream(ticket, form, n_prompt, with_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        leaving = asyncio.create_task(_until_gone(http))
        leaving.add_done_callback(lambda _: ticket.events.put_nowait(_Ended(None)))
        try:
            return await self._whole(ticket, form, n_prompt)
        finally:
            leaving.cancel()

    async def _whole(self, ticket: Ticket, form: Form, n_prompt: int) -> Response:
        texts = [""] * len(ticket.requests)
        tokens: list[list[Drawn]] = [[] for _ in texts]
        finish: list[str | None] = [None] * len(texts)
        n_new = 0
        async with aclosing(self._events(ticket)) as events:
            async for index, event in events:
                texts[index] += event.text
                tokens[index] += _drawn(event)
                finish[index] = event.finish
                n_new += event.token is not None
        if None in finish:  # the client has gone; nobody reads this
            return Response(status_code=499)
        choices = [
            form.choice(i, text, _if_wanted(ticket.requests[i], tokens[i]), finish[i])
            for i, text in enumerate(texts)
        ]
        return JSONResponse(form.whole(choices, _usage(n_prompt, n_new)))

    async def _stream(
        self, ticket: Ticket, form: Form, n_prompt: int, with_usage: bool
    ) -> AsyncIterator[str]:
        n_new, held = 0, [list[Drawn]() for _ in ticket.requests]
        try:
            async with aclosing(self._events(ticket)) as events:
                for index in range(len(ticket.requests)):
                    opening = form.opening(index)
                    if opening is not None:
                        yield sse(opening)
                async for index, event in events:
                    n_new += event.token is not None
                    held[index] += _drawn(event)
                    if not event.text and event.finish is None:
                        continue
                    tokens = _if_wanted(ticket.requests[index], held[index])
                    held[index] = []
                    yield sse(form.piece(index, event.text, tokens, event.finish))
        except ApiError as error:  # the status is sent already
            yield sse(error.body())
            return
        if with_usage:
            yield sse(form.counts(_usage(n_prompt, n_new)))
        yield "data: [DONE]\n\n"

    async def _events(self, ticket: Ticket) -> AsyncIterator[Choice]:
        """Events until the last answer ends or the client leaves; whatever happens, rows are freed.

        Raises:
            ApiError: too slow, or the model failed.
        """
        n_open, is_first = len(ticket.requests), True
        loop, limit = asyncio.get_running_loop(), self.settings.timeout_s
        alarm = loop.call_later(limit, ticket.events.put_nowait, _Ended(too_slow(limit)))
        try:
            while n_open:
                found = await ticket.events.get()
                if isinstance(found, _Ended):
                    if found.error is not None:
                        raise found.error
                    return
                if found.event.finish == "error":
                    raise broken(found.event.message)
                if is_first:
                    self.metrics.first_token.observe(time.monotonic() - ticket.started)
                    is_first = False
                n_open -= found.event.finish is not None
                yield found
        finally:
            alarm.cancel()
            if n_open:
                self.worker.cancel(ticket)


async def _until_gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _drawn(event: Event) -> list[Drawn]:
    if event.token is None or event.logprobs is None:
        return []
    return [Drawn(event.token, event.logprobs.logprob, event.logprobs.top)]


def _if_wanted(request: Request, tokens: list[Drawn]) -> list[Drawn] | None:
    return None if request.n_logprobs is None else tokens


def _usage(n_prompt: int, n_new: int) -> dict[str, int]:
    return {
        "prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new,
    }  # fmt: skip
