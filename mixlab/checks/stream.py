"""A small made-up split, for the checks of data and loss where no text is at hand."""

import numpy as np

from mixlab.data.shards import Sequences, cut_windows

EOS = 0


class MadeUpShards:
    """Random tokens in documents of random length: what `Loader` reads of a `TokenShards`."""

    def __init__(self, n_tokens: int, vocab_size: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        tokens = generator.integers(1, vocab_size, n_tokens, dtype=np.int64)
        tokens[generator.random(n_tokens) < 0.05] = EOS
        self.name, self.eos_id, self.tokens, self.n_tokens = "train", EOS, tokens, n_tokens

    def read(self, windows: np.ndarray, seq_len: int) -> Sequences:
        return cut_windows(self.tokens, self.eos_id, windows, seq_len)

    def n_windows(self, seq_len: int) -> int:
        return (self.n_tokens - 1) // seq_len
