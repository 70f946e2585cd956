"""Train, validation and test by content hash, before anything is tokenised or cut.

Which split a document falls into depends on the set of contents alone: not on names, order of
listing or a seed. So every run over one corpus, whatever its tokenizer, is judged on the same text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.config import SplitConfig
from mixlab.data.documents import counted

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


def split_documents(
    config: SplitConfig,
    order: np.ndarray,
    sizes: np.ndarray,
    n_copies: int = 0,
    unit: str = "document",
) -> Split:
    """Deal out documents: the lowest hashes to validation, the next to test, the rest to train.

    Args:
        order: (n_documents,) document numbers sorted by content hash.
        sizes: (n_documents,) bytes of each document.
        n_copies: exact copies dropped before, and `unit` what a document is; for the message.

    Raises:
        DataError: a split would be empty.
    """
    split = _deal(config, order, sizes)
    if split is None:  # a document that is most of the text is trained on: the others are dealt out
        is_giant = sizes[order] > _MAX_VALIDATION_FRAC * sizes.sum()
        split = _deal(config, order[~is_giant], sizes)
        if split is None:
            raise _too_few(sizes, n_copies, unit)
        split = split._replace(train=np.concatenate([split.train, order[is_giant]]))
    return split


def _deal(config: SplitConfig, order: np.ndarray, sizes: np.ndarray) -> Split | None:
    """The documents dealt out in this order; None if a split would be empty."""
    if len(order) == 0:
        return None
    ends = np.cumsum(sizes[order])  # bytes up to and with each document
    n_bytes = int(ends[-1])
    wanted = min(_MAX_VALIDATION_FRAC * n_bytes, _BYTES_PER_TOKEN * config.min_validation_tokens)
    n_validation = _n_reaching(ends, 0, max(config.validation_frac * n_bytes, wanted))
    n_test = _n_reaching(ends, n_validation, config.test_frac * n_bytes)
    n_held_out = n_validation + n_test
    if n_test == 0 or n_held_out >= len(order):
        return None
    return Split(order[n_held_out:], order[:n_validation], order[n_validation:n_held_out])


def split_as_named(order: np.ndarray, names: Sequence[str]) -> Split:
    """Deal out documents of a corpus that splits itself: each name begins with its split.

    Args:
        order: (n_documents,) document numbers sorted by content hash.
    """
    homes = np.array([names[i].partition("/")[0] for i in order])
    return Split(*(order[homes == name] for name in SPLITS))


def _too_few(sizes: np.ndarray, n_copies: int, unit: str) -> DataError:
    """Why these documents do not give three splits: copies of each other, or simply too few."""
    n = len(sizes)
    if n_copies >= n:  # cutting the text into more pieces would only make more copies
        return DataError(
            f"data.corpus: the text repeats itself: only {n} of its {counted(n + n_copies, unit)} "
            f"{'is' if n == 1 else 'are'} distinct, and exact copies are dropped before the split. "
            "What is left does not give a train, a validation and a test split. Give text that "
            "repeats itself less."
        )
    return DataError(
        f"data.split: {counted(n, f'distinct {unit}')} of {int(sizes.sum())} bytes (the largest "
        f"has {int(sizes.max())}) cannot give three splits that are not empty. Give more text, or "
        "more documents: for plain text data.corpus.document=passage with a smaller "
        "data.corpus.passage_bytes."
    )


def _n_reaching(ends: np.ndarray, first: int, target: float) -> int:
    """How many documents from `first` on are needed to reach `target` bytes (all, if too few)."""
    start = int(ends[first - 1]) if first else 0
    last = int(np.searchsorted(ends, start + max(target, 1), side="left"))
    return min(last + 1, len(ends)) - first
