"""Kinds of token, told by the text that a token stands for: line break, number, word start, ..."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixlab.data.tokenizers.base import Tokenizer

CLASSES = (
    "end of document",
    "line break",  # nothing but blanks, with at least one line break
    "spaces",  # nothing but blanks on one line, such as an indent
    "number",  # begins with a digit, or has digits and no letter
    "word start",  # letters after a blank
    "word piece",  # letters without a blank before them
    "punctuation",  # and operators, brackets, quotes
    "other",  # a part of a character, control characters, no text at all
)


def class_of(text: str) -> str:
    """The class of a token that stands for `text` and does not end a document."""
    core = text.strip()
    if not core or "\ufffd" in core:
        blank = "line break" if "\n" in text or "\r" in text else "spaces"
        return "other" if core or not text else blank
    has_letter = any(c.isalpha() for c in core)
    if core[0].isdigit() or (not has_letter and any(c.isdigit() for c in core)):
        return "number"
    if has_letter:
        return "word start" if text[0].isspace() else "word piece"
    # Unicode's categories P.. (punctuation) and S.. (symbols).
    is_punctuation = all(unicodedata.category(c)[0] in "PS" or c.isspace() for c in core)
    return "punctuation" if is_punctuation else "other"


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each id as it stands inside a text, where some decoders drop a leading blank."""
    anchor = tokenizer.encode("a")
    before = tokenizer.decode(anchor)
    return [tokenizer.decode([*anchor, int(i)]).removeprefix(before) for i in ids]


def token_classes(tokenizer: Tokenizer, ids: Sequence[int]) -> NDArray[np.int64]:
    """Index into CLASSES of every id."""
    texts = token_texts(tokenizer, ids)
    names = [
        CLASSES[0] if i == tokenizer.eos_id else class_of(text)
        for i, text in zip(ids, texts, strict=True)
    ]
    return np.array([CLASSES.index(name) for name in names], dtype=np.int64)
