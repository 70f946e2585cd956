"""Tokens in, text out as soon as it is certain: whole characters, and no part of a stop string."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what incomplete bytes decode to
N_BEFORE = 6
"""Tokens of the prompt that are decoded with the first new ones: how a token is written may depend
on its neighbour, as with tokenizers that drop the space in front of a text."""


class TextStream:
    """The text of one answer.

    Decoding all of it for every token would cost the square of its length, so only the tokens
    since the last complete character are decoded, together with the piece before them.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._decode = decode
        self._ids = list(prompt[-N_BEFORE:])
        self._start, self._read = 0, len(self._ids)
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False
        """Whether a stop string has been found; what comes after it is not text of the answer."""

    def add(self, token: int) -> str:
        """The text that has become certain with one more token."""
        self._ids.append(token)
        text = self._fresh()
        if not text or text.endswith(REPLACEMENT):  # bytes of a character that is not complete
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._pass(text)

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._pass(self._fresh()) + self._held
        self._start = self._read = len(self._ids)
        self._held = ""
        return text

    def _fresh(self) -> str:
        """Text of the tokens since the last complete character."""
        before = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _pass(self, text: str) -> str:
        """Hold back what may become a stop string; cut at one that is complete."""
        if not self._stop:
            return text
        text = self._held + text
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
