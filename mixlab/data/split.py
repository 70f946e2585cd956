"""Train, validation and test by content hash, before anything is tokenised or cut.

Which split a document falls into depends on the set of contents alone: not on names, order of
listing or a seed. So every run over one corpus, whatever its tokenizer, is judged on the same text.
"""

from typing import NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.config import SplitConfig

SPLITS = ("train", "validation", "test")

# Byte-level tokenizers give 3 to 5 bytes per token; taking the upper end makes the validation
# split large enough for its number of tokens before there is a tokenizer to count them.
_BYTES_PER_TOKEN = 5
# A small corpus gives at most this much to validation for the sake of that number.
_MAX_VALIDATION_FRAC = 0.2


class Split(NamedTuple):
    """Document numbers of each split, sorted by content hash."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_documents(config: SplitConfig, order: np.ndarray, sizes: np.ndarray) -> Split:
    """Deal out documents: the lowest hashes to validation, the next to test, the rest to train.

    Args:
        order: (n_documents,) document numbers sorted by content hash.
        sizes: (n_documents,) bytes of each document.

    Raises:
        DataError: a split would be empty.
    """
    ends = np.cumsum(sizes[order])  # bytes up to and with each document, in hash order
    n_bytes = int(ends[-1])
    wanted = min(_MAX_VALIDATION_FRAC * n_bytes, _BYTES_PER_TOKEN * config.min_validation_tokens)
    n_validation = _n_reaching(ends, 0, max(config.validation_frac * n_bytes, wanted))
    n_test = _n_reaching(ends, n_validation, config.test_frac * n_bytes)
    n_held_out = n_validation + n_test
    if n_test == 0 or n_held_out >= len(order):
        raise DataError(
            f"data.split: {len(order)} distinct documents of {n_bytes} bytes (the largest has "
            f"{int(sizes.max())}) do not give three splits that are not empty. Give more text, or "
            "more documents: for plain text data.corpus.document=passage with a smaller "
            "data.corpus.passage_bytes."
        )
    return Split(order[n_held_out:], order[:n_validation], order[n_validation:n_held_out])


def _n_reaching(ends: np.ndarray, first: int, target: float) -> int:
    """How many documents from `first` on are needed to reach `target` bytes (all, if too few)."""
    start = int(ends[first - 1]) if first else 0
    last = int(np.searchsorted(ends, start + max(target, 1), side="left"))
    return min(last + 1, len(ends)) - first
