"""The `data.chat:` node: how examples of question and answer become tokens and targets."""

from typing import Any, Literal

from mixlab.core.config import Config
from mixlab.core.errors import Rule


class ChatConfig(Config):
    """Template, targets and mask of a corpus whose documents are conversations."""

    template: Literal["plain", "chatml", "bare"] = "chatml"
    """How a conversation is written: `chatml` marks every message, `plain` just goes on, `bare`
    puts nothing between the messages and does not end an answer."""
    response_only_loss: bool = True
    """Learn from the tokens of answers alone; otherwise from every token."""
    prefix_lm: bool = False
    """Let the tokens before the first answer see each other both ways. For attention and MLA."""
    too_long: Literal["drop", "stop"] = "drop"
    """Examples longer than `data.seq_len`: left out and counted, or an error; never cut."""

    def model_post_init(self, context: Any) -> None:
        if self.prefix_lm and not self.response_only_loss:
            raise Rule(
                "prefix_lm", True, "response_only_loss = true with it",
                "Tokens of the prompt see the tokens after them, so they cannot be predicted.",
            )  # fmt: skip
