"""How a conversation becomes tokens, and where an answer ends.

A template gives pieces, and each piece is encoded by itself. So a prompt has the same tokens
whether an answer follows it in training or is still to be written. Marks of a template are tokens
of their own, which no text can give: a message that contains `<|im_end|>` cannot end itself.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.chat.messages import Message, require_question
from mixlab.data.tokenizers.base import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
EOS_MARK = "eos"
"""In a template: the tokenizer's end-of-text token, whatever its name."""


class Piece(NamedTuple):
    """A stretch of a conversation that is encoded by itself."""

    text: str
    is_mark: bool = False  # a token of its own, by its name
    is_answer: bool = False  # what a model learns to write


class Template:
    """Base of the templates."""

    name: str
    marks: tuple[str, ...] = ()
    """Special tokens that the tokenizer needs besides EOS."""
    end: str
    """The mark that ends an answer."""
    ends_answers: bool = True
    """Whether that mark is written after every answer, and so learned."""
    jinja: str
    """The same template in the language of `transformers`' chat templates."""

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """All of a conversation."""
        raise NotImplementedError

    def answer_header(self) -> Sequence[Piece]:
        """What stands before an answer that is still to be written."""
        raise NotImplementedError


class Plain(Template):
    """A text that goes on: each message on a line, an answer ended by EOS."""

    name = "plain"
    end = EOS_MARK
    jinja = (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
        "{% endfor %}"
    )

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        for role, content in messages:
            if role == "assistant":
                yield Piece(content, is_answer=True)
                yield Piece(EOS_MARK, is_mark=True, is_answer=True)
            else:
                yield Piece(f"{content}\n")

    def answer_header(self) -> Sequence[Piece]:
        return ()


class ChatMl(Template):
    """ChatML: every message between two marks, with its role on the first line."""

    name = "chatml"
    marks = (IM_START, IM_END)
    end = IM_END
    jinja = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        for role, content in messages:
            is_answer = role == "assistant"
            yield Piece(IM_START, is_mark=True)
            yield Piece(f"{role}\n")
            yield Piece(content, is_answer=is_answer)
            yield Piece(IM_END, is_mark=True, is_answer=is_answer)
            yield Piece("\n")

    def answer_header(self) -> Sequence[Piece]:
        return Piece(IM_START, is_mark=True), Piece("assistant\n")


class Bare(Template):
    """Messages one after the other, with nothing between them and nothing at the end.

    For tasks whose answers have a known length, such as recall: a mark that ends every answer would
    be a second thing to learn, and half of the accuracy.
    """

    name = "bare"
    end = EOS_MARK
    ends_answers = False
    jinja = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

    def pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        for role, content in messages:
            yield Piece(content, is_answer=role == "assistant")

    def answer_header(self) -> Sequence[Piece]:
        return ()


TEMPLATES: dict[str, Template] = {
    template.name: template for template in (Plain(), ChatMl(), Bare())
}
"""Every template, by name."""


class EncodedExample(NamedTuple):
    """A whole conversation as tokens."""

    ids: np.ndarray  # (L,) int64
    is_answer: np.ndarray  # (L,) bool: the model learns to write this token


class ChatFormat:
    """A template with the tokenizer that it is used with.

    Attributes:
        is_tuned: whether the model was trained on conversations; one that was not goes on writing
            as its text would.
        prefix_lm: whether tokens of the prompt see each other both ways; see `ops.packing`.
    """

    def __init__(
        self, template: Template, tokenizer: Tokenizer, *, is_tuned: bool, prefix_lm: bool = False
    ) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.is_tuned, self.prefix_lm = is_tuned, prefix_lm
        missing = [mark for mark in template.marks if tokenizer.special_id(mark) is None]
        if missing:
            raise DataError(
                f"data.chat.template = {template.name!r}: expected the tokenizer to have the "
                f"special tokens {', '.join(missing)}, which it lacks."
            )
        self._end_id = self._mark_id(template.end)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self._end_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which an answer is over; no part of it."""
        return tuple(dict.fromkeys((self._end_id, self.tokenizer.eos_id)))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts at which an answer is over, for a model that has not learned to end one."""
        return () if self.is_tuned else ("\n\n",)

    @property
    def special_tokens(self) -> dict[str, str | None]:
        """Names as `transformers` keeps them: the `eos` is what ends an answer."""
        end = self.template.end
        return {"bos": None, "eos": self.tokenizer.eos if end == EOS_MARK else end}

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation up to where its next answer begins.

        Raises:
            DataError: messages out of order, or the last one is not a user's.
        """
        require_question(messages)
        pieces = [*self.template.pieces(messages), *self.template.answer_header()]
        return [i for piece in pieces for i in self._ids(piece)]

    def encode(self, messages: Sequence[Message]) -> EncodedExample:
        """The tokens of a conversation with its answers."""
        return self.encode_many([messages])[0]

    def encode_many(self, conversations: Sequence[Sequence[Message]]) -> list[EncodedExample]:
        """The tokens of many conversations; all cores are used."""
        pieces = [list(self.template.pieces(messages)) for messages in conversations]
        texts = [piece.text for found in pieces for piece in found if not piece.is_mark]
        encoded = iter(self.tokenizer.encode_many(texts))
        examples = []
        for found in pieces:
            ids: list[int] = []
            is_answer: list[bool] = []
            for piece in found:
                part = [self._mark_id(piece.text)] if piece.is_mark else next(encoded)
                ids += part
                is_answer += [piece.is_answer] * len(part)
            examples.append(EncodedExample(np.array(ids, dtype=np.int64), np.array(is_answer)))
        return examples

    def _ids(self, piece: Piece) -> list[int]:
        return [self._mark_id(piece.text)] if piece.is_mark else self.tokenizer.encode(piece.text)

    def _mark_id(self, mark: str) -> int:
        if mark == EOS_MARK:
            return self.tokenizer.eos_id
        found = self.tokenizer.special_id(mark)
        assert found is not None, "looked for when the format was made"
        return found
