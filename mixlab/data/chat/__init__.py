"""Examples of question and answer: conversations, their templates, their shards."""

from mixlab.data.chat.config import ChatConfig
from mixlab.data.chat.messages import Message
from mixlab.data.chat.templates import TEMPLATES, ChatFormat

__all__ = ["TEMPLATES", "ChatConfig", "ChatFormat", "Message"]
