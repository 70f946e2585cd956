"""Text that nobody wrote, for measuring speed: random tokens in documents of random length."""

import numpy as np
import torch

from mixlab.data.batch import Batch


class RandomText:
    """Stands in for a loader. Speed does not depend on what the tokens say, unlike the loss.

    `mean_document` is the mean length of a document in tokens (geometric); absent, every sequence
    is one document.
    """

    def __init__(
        self, vocab_size: int, seq_len: int, seed: int, mean_document: int | None = None
    ) -> None:
        self.vocab_size, self.seq_len, self.seed = vocab_size, seq_len, seed
        self._mean_document = mean_document

    def batch(self, position: int, n: int) -> Batch:
        """The `n` sequences from `position` on, a pure function of (seed, position)."""
        g = np.random.default_rng((self.seed, position))
        stream = g.integers(0, self.vocab_size, (n, self.seq_len + 1), dtype=np.int64)
        segments = np.zeros((n, self.seq_len), dtype=np.int32)
        if self._mean_document is not None:
            ends = g.random((n, self.seq_len - 1)) < 1 / self._mean_document
            np.cumsum(ends, axis=1, out=segments[:, 1:])
        tokens, targets = stream[:, :-1].copy(), stream[:, 1:].copy()
        return Batch(*map(torch.from_numpy, (tokens, targets, segments)))
