"""Figures beside which a loss means something: what is reached without looking at any context."""

import math

import numpy as np

from mixlab.data.chat.shards import ExampleShards
from mixlab.data.shards import TokenShards


def evaluation_targets(
    shards: TokenShards | ExampleShards, seq_len: int, n_windows: int
) -> np.ndarray:
    """Exactly the targets of `Loader.window_batches(n_windows, ...)`, one after the other."""
    return shards.evaluation_targets(seq_len, n_windows)


def unigram_entropy_nats(targets: np.ndarray) -> float:
    """Entropy of the targets' own frequencies in nats per token.

    No model that ignores the context can have a lower mean loss on these targets.
    """
    counts = np.bincount(np.asarray(targets).ravel())
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def context_figures(
    shards: TokenShards | ExampleShards, seq_len: int, n_windows: int
) -> dict[str, float]:
    """The context lines of an evaluation: uniform guessing, and the best constant guess.

    Also the mean bytes per target, which turns nats per token into bits per byte.
    """
    targets = evaluation_targets(shards, seq_len, n_windows)
    return {
        "ln_vocab_nats": math.log(len(shards.token_bytes)),
        "unigram_entropy_nats": unigram_entropy_nats(targets),
        "bytes_per_target": float(shards.token_bytes[targets].mean(dtype=np.float64)),
    }
