"""A conversation with a trained model: what was said, what fits, and the next answer.

A model that was tuned on conversations is asked in the template that it was tuned with. One that
was trained on plain text has no idea of question and answer: there the conversation is one text,
which user and model write in turn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mixlab.core.errors import LabError
from mixlab.core.run_dir import RunDir
from mixlab.data.chat.messages import Message
from mixlab.data.chat.templates import ChatFormat
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.chat_format import open_chat_format
from mixlab.jobs.trained import TrainedModel

MIN_ROOM = 32
"""Tokens that are kept free for an answer, or a quarter of the context where that is less."""


@dataclass
class Conversation:
    """Turns so far, and the settings of the next answer, which may be changed between turns."""

    model: TrainedModel
    format: ChatFormat
    sampling: SamplingConfig
    max_new_tokens: int = 256
    """Longest answer; a shorter one where the context ends."""
    seed: int = 0
    """Of the first answer; each further one counts it up."""
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    n_turns: int = 0

    @property
    def is_base(self) -> bool:
        """Whether the model goes on with a text instead of answering."""
        return not self.format.is_tuned

    def reset(self) -> None:
        """Forget what was said; settings and system message stay."""
        self.messages.clear()

    def set_system(self, text: str) -> None:
        """The message that stands before the conversation; none if empty.

        Raises:
            LabError: the model was not tuned on conversations.
        """
        if self.is_base:
            raise LabError(
                "system message: expected a run that was tuned on conversations, and this one "
                "goes on with plain text. Type it as the beginning of the text, or tune a run by "
                "`mixlab sft`."
            )
        self.system = text

    def answer(self, text: str, tell: Callable[[str], None] = lambda note: None) -> Iterator[str]:
        """The next answer, a piece per token, often empty. What was drawn of it is remembered.

        `tell` hears of what had to be left out. If the iterator is closed early, what it gave
        counts as the answer.

        Raises:
            LabError: the message does not fit into the context; nothing is remembered then.
        """
        said = [*self.messages, Message("user", text)]
        prompt = self._continued(said, tell) if self.is_base else self._asked(said, tell)
        n_new = min(self.max_new_tokens, self.model.context - max(1, len(prompt)))
        request = self.model.request(
            prompt, max_new_tokens=n_new, sampling=self.sampling, seed=self.seed + self.n_turns,
            stop_ids=self.format.stop_ids,
        )  # fmt: skip
        events = self.model.events(request)
        self.n_turns += 1
        pieces: list[str] = []
        try:
            for event in events:
                pieces.append(event.text)
                yield event.text
                if event.finish == "stop" and self.is_base:
                    tell("The model ended the text here; what you write next goes on with it.")
                if event.finish == "length" and n_new < self.max_new_tokens:
                    tell(f"The context of {self.model.context} tokens is full.")
        finally:
            if not self.is_base and not "".join(pieces).strip():
                pieces = ["..."]  # a turn without text would be no conversation
            self.messages[:] = [*said, Message("assistant", "".join(pieces))]

    @property
    def _room(self) -> int:
        """Most tokens of a prompt."""
        return self.model.context - min(self.max_new_tokens, MIN_ROOM, self.model.context // 4)

    def _continued(self, said: list[Message], tell: Callable[[str], None]) -> list[int]:
        """The end of the text that was written in turn."""
        ids = self.model.encode("".join(message.content for message in said))
        n_over = len(ids) - self._room
        if n_over > 0:
            tell(f"The text is longer than the context; its first {n_over} tokens are left out.")
            ids = ids[n_over:]
        return ids

    def _asked(self, said: list[Message], tell: Callable[[str], None]) -> list[int]:
        """The conversation in the template, without the oldest turns that no longer fit."""
        first = [Message("system", self.system)] if self.system.strip() else []
        for message in (*first, *said[-1:]):
            self.model.encode(message.content)
        for n_left_out in range(0, len(said), 2):  # a question goes with its answer
            ids = self.format.prompt_ids([*first, *said[n_left_out:]])
            if len(ids) <= self._room:
                if n_left_out:
                    turns = "turn no longer fits" if n_left_out == 2 else "turns no longer fit"
                    tell(f"The first {n_left_out // 2} {turns} into the context and is not seen.")
                    del said[:n_left_out]
                return ids
        raise LabError(
            f"message of {len(ids)} tokens with its template: expected at most {self._room}, so "
            f"that an answer fits into the context of {self.model.context}. Shorten it."
        )


def open_conversation(
    model: TrainedModel, *, sampling: SamplingConfig, max_new_tokens: int = 256, seed: int = 0,
    system: str = "",
) -> Conversation:  # fmt: skip
    """A conversation that has not begun.

    Raises:
        LabError: a number is out of range, or a system message where the model knows none.
    """
    if max_new_tokens < 1:
        raise LabError(f"max_new_tokens = {max_new_tokens}: expected at least 1.")
    template = open_chat_format(RunDir.open(model.path), model.tokenizer)
    conversation = Conversation(model, template, sampling, max_new_tokens, seed)
    if system:
        conversation.set_system(system)
    return conversation


def greeting(conversation: Conversation) -> list[str]:
    """What this model is, and what to expect of it."""
    model, lines = conversation.model, []
    n_params = sum(p.numel() for p in model.model.parameters())
    lines.append(f"{model.path}, step {model.step}, {n_params / 1e6:.1f}M parameters, "
                 f"context {model.context} tokens.")  # fmt: skip
    lines += model.notes
    if conversation.is_base:
        lines.append(
            "This run was trained on plain text: it goes on with what you write, and does not "
            "answer. Where a text could end it may write nothing. An empty line lets it write on. "
            "`mixlab sft` tunes a run to answer."
        )
    else:
        lines.append(
            f"This run was tuned on conversations (template {conversation.format.template.name}): "
            "it answers, in the manner of the examples it saw. A model of this size is often wrong."
        )
    return lines
