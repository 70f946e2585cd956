"""Tokens of a vocabulary that can stand for keys, values and secrets in a test of memory."""

import numpy as np

from mixlab.core.errors import LabError
from mixlab.data.tokenizers.base import Tokenizer


def word_tokens(tokenizer: Tokenizer, n: int) -> np.ndarray:
    """Ids to draw from: words with a blank before them if there are at least `n`, else any text.

    Raises:
        LabError: the vocabulary has fewer than `n` tokens that stand for text.
    """
    is_text = np.flatnonzero(tokenizer.token_bytes > 0)
    texts = {int(i): tokenizer.decode([int(i)]) for i in is_text}
    words = [i for i, text in texts.items() if text[:1] == " " and text[1:].isalpha()]
    pool = words if len(words) >= n else [i for i, text in texts.items() if "\ufffd" not in text]
    if len(pool) < n:
        raise LabError(
            f"the tokenizer has {len(pool)} tokens that stand for text: expected at least {n} for "
            "this test. Ask for fewer keys, values or choices."
        )
    return np.array(pool)
