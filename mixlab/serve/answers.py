"""What a client gets: the answers of the OpenAI API, whole and as pieces of a stream."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel

Decode = Callable[[Sequence[int]], str]
Finish = Literal["stop", "length"]


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Natural logarithms of probabilities, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(BaseModel):
    """The answer to /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class TopLogprob(BaseModel):
    """A token that might have been drawn."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that was drawn."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Natural logarithms of probabilities, one entry per token."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """What the model wrote."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletion(BaseModel):
    """The answer to /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ErrorDetail(BaseModel):
    """What was wrong, and where."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer other than 200."""

    error: ErrorDetail


class Drawn(NamedTuple):
    """A token with what the model thought of it and of others."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Form(Protocol):
    """How answers of one endpoint look; the trees are plain data."""

    def choice(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]: ...

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]: ...

    def opening(self, index: int) -> dict[str, Any] | None: ...

    def piece(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]: ...

    def counts(self, usage: dict[str, int]) -> dict[str, Any]: ...


class CompletionForm:
    """Texts."""

    def __init__(self, model: str, decode: Decode, wants_top: bool) -> None:
        self._head = _head("cmpl", "text_completion", model)
        self._decode, self._wants_top = decode, wants_top
        self._offsets: dict[int, int] = {}  # characters of each answer that were sent

    def choice(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self._logprobs(index, tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "choices": choices, "usage": usage}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]:
        return {**self._head, "choices": [self.choice(index, text, tokens, finish)]}

    def counts(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage}

    def _logprobs(self, index: int, tokens: Sequence[Drawn]) -> dict[str, Any]:
        texts = [self._decode([token.token]) for token in tokens]
        offsets, at = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        top = None
        if self._wants_top:
            top = [
                {self._decode([i]): logprob for i, logprob in reversed(token.top)}
                for token in tokens
            ]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


class ChatForm:
    """Messages."""

    def __init__(self, model: str, decode: Decode) -> None:
        self._head = _head("chatcmpl", "chat.completion", model)
        self._decode = decode

    def choice(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index, "message": message, "logprobs": self._logprobs(tokens),
            "finish_reason": finish,
        }  # fmt: skip

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "choices": choices, "usage": usage}

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(
        self, index: int, text: str, tokens: Sequence[Drawn] | None, finish: str | None
    ) -> dict[str, Any]:
        delta = {"content": text} if text or finish is None else {}
        return self._chunk(index, delta, tokens, finish)

    def counts(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[Drawn] | None,
        finish: str | None,
    ) -> dict[str, Any]:
        choice = {
            "index": index, "delta": delta, "logprobs": self._logprobs(tokens),
            "finish_reason": finish,
        }  # fmt: skip
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: Sequence[Drawn] | None) -> dict[str, Any] | None:
        if tokens is None:
            return None
        content = [
            {
                **self._entry(token.token, token.logprob),
                "top_logprobs": [self._entry(i, logprob) for i, logprob in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._decode([token])
        # Part of a character: its bytes cannot be told from the text.
        known = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": known}


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
        "model": model,
    }  # fmt: skip
