"""Token shards to batches, as a pure function of (seed, position).

A split of plain text is cut once into windows that share no token: window w reads tokens w*T to
w*T+T and predicts those from w*T+1 to w*T+T+1. So each token of the stream is a target at most once
per epoch, whatever is asked for; there is no stride to set. Examples of question and answer are
packed into windows whole.
"""

from collections.abc import Iterator

import numpy as np
import torch

from mixlab.data.batch import IGNORE, Batch
from mixlab.data.chat.shards import ExampleShards
from mixlab.data.permutation import Permutation
from mixlab.data.shards import TokenShards, require_windows


class Loader:
    """Sequences of one split, in a random order per epoch or one after the other.

    Attributes:
        n_windows: sequences per epoch.

    Raises:
        DataError: the split is shorter than one sequence and its last target.
    """

    def __init__(self, shards: TokenShards | ExampleShards, seq_len: int, seed: int) -> None:
        self.shards, self.seq_len, self.seed = shards, seq_len, seed
        self.n_windows = shards.n_windows(seq_len)
        require_windows(shards, seq_len, 1)

    def batch(self, position: int, n: int) -> Batch:
        """The `n` sequences from `position` on, counted since the start of training."""
        positions = np.arange(position, position + n, dtype=np.int64)
        epochs, places = np.divmod(positions, self.n_windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = Permutation(self.n_windows, self.seed, int(epoch))
            windows[here] = order(places[here])
        return self._read(windows)

    def window_batches(
        self, n_windows: int, batch_size: int, *, reader: int = 0, n_readers: int = 1
    ) -> Iterator[Batch]:
        """The first `n_windows` windows of the stream in order; the last batch may be smaller.

        Of several readers, each gets every `n_readers`th batch and all get equally many: whose turn
        comes after the last batch gets one more whose targets are all `IGNORE`.

        Raises:
            DataError: there are fewer windows.
        """
        require_windows(self.shards, self.seq_len, n_windows)
        firsts = range(0, n_windows, batch_size)
        for turn in range(0, len(firsts), n_readers):
            first = firsts[min(turn + reader, len(firsts) - 1)]
            batch = self._read(np.arange(first, min(first + batch_size, n_windows)))
            if turn + reader >= len(firsts):
                batch = batch._replace(targets=torch.full_like(batch.targets, IGNORE))
            yield batch

    def _read(self, windows: np.ndarray) -> Batch:
        found = self.shards.read(windows, self.seq_len)
        return Batch(*(None if part is None else torch.from_numpy(part) for part in found))
