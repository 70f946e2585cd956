"""Markdown pieces that stay what they are whatever text is put into them."""

import re
from collections.abc import Sequence

_CONTROLS = re.compile(
    # All control characters but tab and newline; lone surrogates; marks that turn the direction
    # of the text after them.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


def printable(text: str) -> str:
    """Model output may hold anything; what a terminal or a browser would obey becomes U+FFFD."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def fenced(text: str, language: str = "") -> str:
    """A code block; its fence is longer than any run of backticks inside."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def code(text: str) -> str:
    """Inline code on one line."""
    text = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if not text:
        return "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # Markdown takes one space off each end, unless there is nothing but spaces.
    is_stripped = text.strip() and text[0] == text[-1] == " "
    pad = " " if is_stripped or "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: str) -> str:
    """Text on one line in which no character is markup."""
    one_line = " ".join(printable(text).split())
    # An underscore inside a word, as in a setting's name, marks nothing up.
    return re.sub(r"([\\`*{}\[\]<>|#~$]|(?<!\w)_|_(?!\w))", r"\\\1", one_line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are markdown already; with `numbers` all but the first are aligned."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(header) - 1))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    # A bar ends a cell even inside inline code.
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))
