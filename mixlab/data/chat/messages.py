"""What an example of question and answer is: a conversation that ends with an answer."""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from mixlab.core.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def problem_of(messages: Sequence[Message], *, ends_with: str) -> str | None:
    """What is wrong with a conversation, as the end of "row with ..."; None if it is sound.

    Sound is: a system message or none, then user and assistant in turn, the last one of the role
    `ends_with`.
    """
    turns = list(messages)
    if turns and turns[0].role == "system":
        turns = turns[1:]
    for place, message in enumerate(turns):
        wanted = ("user", "assistant")[place % 2]
        if message.role not in ROLES:
            return f"the role {message.role!r}"
        if message.role != wanted:
            return f"a message of {message.role} where one of {wanted} is due"
    if any(not message.content.strip() for message in messages):
        return "an empty message"
    if not turns:
        return "no message of user and assistant"
    if turns[-1].role != ends_with:
        return f"no {ends_with} message at the end"
    return None


def require_question(messages: Sequence[Message]) -> None:
    """Check a conversation that is to be answered.

    Raises:
        DataError: it does not end with a user's message, or has messages out of order.
    """
    problem = problem_of(messages, ends_with="user")
    if problem is not None:
        raise DataError(
            f"messages: a conversation with {problem}: expected a system message or none, then "
            "user and assistant in turn, with one of user at the end."
        )


def to_text(messages: Sequence[Message]) -> str:
    """The one text that stands for a conversation: equal exactly for equal conversations."""
    return json.dumps([list(message) for message in messages], ensure_ascii=False)


def from_text(text: str) -> list[Message]:
    """The conversation that `to_text` wrote."""
    return [Message(role, content) for role, content in json.loads(text)]


def question_of(messages: Sequence[Message]) -> str:
    """What tells two examples' questions apart: all but the last answer, whatever the spacing and
    the capitals."""
    asked = [
        [message.role, " ".join(message.content.casefold().split())] for message in messages[:-1]
    ]
    return json.dumps(asked, ensure_ascii=False)


def messages_of(row: dict[str, Any], prompt: str, completion: str) -> list[Message] | str:
    """The conversation of a row of JSON; a text says why there is none.

    A row has `messages`, or the two fields `prompt` and `completion`: texts, or messages again.
    """
    if "messages" in row:
        return _listed(row["messages"])
    first, last = row.get(prompt), row.get(completion)
    if first is None or last is None:
        return f"neither messages nor {prompt} and {completion}"
    asked = [Message("user", first)] if isinstance(first, str) else _listed(first)
    given = [Message("assistant", last)] if isinstance(last, str) else _listed(last)
    for part in (asked, given):
        if isinstance(part, str):
            return part
    return [*asked, *given]  # type: ignore[misc]


def _listed(value: Any) -> list[Message] | str:
    if not isinstance(value, list):
        return f"a {type(value).__name__} in place of messages"
    found = []
    for item in value:
        if not isinstance(item, dict):
            return "a message that is not an object"
        role, content = item.get("role"), item.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return "a message without role and content as text"
        found.append(Message(role, content))
    return found
