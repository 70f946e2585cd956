"""Limits of a server: what one request may ask for, and how much waits at once."""

from pydantic import Field, PositiveFloat, PositiveInt

from mixlab.core.config import Config


class ServeSettings(Config):
    """Everything that can be set about a server, besides which run and where."""

    max_rows: int = Field(default=8, ge=1, le=1024)
    """Answers that are written at the same time; more requests wait."""
    max_queue: int = Field(default=64, ge=0)
    """Answers that may wait for a row; beyond that, a request is refused with 429."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt; absent: what the model's context allows."""
    max_new_tokens: PositiveInt | None = None
    """Longest answer that a request may ask for; absent: what the model's context allows."""
    max_choices: PositiveInt = 16
    """Answers of one request: prompts times n."""
    timeout_s: PositiveFloat = 300.0
    """A request that takes longer is ended with an error."""
    body_timeout_s: PositiveFloat = 30.0
    """Time that a client has to send its request."""
    max_body_bytes: PositiveInt = 1 << 20
    """A request with a larger body is refused with 413."""
    shutdown_s: int = Field(default=10, ge=0)
    """After Ctrl-C, answers under way have this long to end."""
