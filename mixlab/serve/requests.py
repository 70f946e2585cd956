"""What a client may send: the fields of the OpenAI API that this server honours, and no others.

A field that would change the answer and is not honoured is refused by name. A field at its neutral
value, such as a penalty of 0, changes nothing and is let through.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_STOPS, MAX_STOP_CHARS = 8, 200
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0)]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of the API that are not honoured, with the values at which they change nothing."""


class UnsupportedError(ValueError):
    """A field of the API that this server does not honour."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} is not supported by this server. Leave it out.")


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = Field(default=False, description="Send the counts of tokens at the end.")


class Sampled(BaseModel):
    """Fields that both kinds of request have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(description="The name of the model, as /v1/models gives it.")
    n: int = Field(default=1, ge=1, description="Answers to each prompt.")
    stream: bool = Field(default=False, description="Send the answer as it is written.")
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Draw from this much probability.")
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="Same seed, same text."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="Texts that end the answer and are no part of it."
    )
    user: str | None = Field(default=None, description="Has no effect.")
    top_k: int | None = Field(
        default=None, ge=1, description="Beyond the OpenAI API: draw from so many likeliest tokens."
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1,
        description="Beyond the OpenAI API: leave out tokens less likely than this share of the "
        "likeliest.",
    )  # fmt: skip
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10,
        description="Beyond the OpenAI API: makes tokens less likely that were there before.",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        """Drop what is null or changes nothing.

        Raises:
            UnsupportedError: a field of the API that is not honoured.
        """
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if value is None and name in {*cls.model_fields, *NEUTRAL}:
                continue
            if name in NEUTRAL and name not in cls.model_fields:
                if any(_same(value, neutral) for neutral in NEUTRAL[name]):
                    continue
                raise UnsupportedError(name)
            kept[name] = value
        return kept

    @model_validator(mode="after")
    def _fits(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: expected only together with stream = true")
        return self

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Sampled):
    """A text to be continued."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]] = Field(
        default="",
        description="One text or several, or their tokens. An empty one begins a document.",
    )
    max_tokens: int = Field(default=16, ge=1, description="Longest answer, in tokens.")
    logprobs: int | None = Field(
        default=None, ge=0, le=5, description="Log-probabilities of so many likeliest tokens."
    )

    def prompts(self) -> list[str | list[int]]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and all(isinstance(part, int) for part in prompt):
            return [prompt]  # type: ignore[list-item]
        return list(prompt)  # type: ignore[arg-type]


class TextPart(BaseModel):
    """A part of a message; only text is known here."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Sampled):
    """A conversation to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The newer name of max_tokens."
    )
    logprobs: bool = Field(default=False, description="Report log-probabilities.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Of so many likeliest tokens too."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: expected only together with logprobs = true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens: expected the same as max_completion_tokens, or only one")
        return self

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _same(value: Any, neutral: Any) -> bool:
    """Equal and of one kind: false is no 0."""
    if isinstance(value, bool) or isinstance(neutral, bool):
        return value is neutral
    return bool(value == neutral)
