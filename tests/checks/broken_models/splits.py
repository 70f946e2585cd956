"""Splits of one made-up text, sound and leaky."""

from types import SimpleNamespace

import numpy as np

DOCUMENT = 200


def documents(n, seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 500, DOCUMENT).astype(np.uint16) for _ in range(n)]


def shards(parts):
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return SimpleNamespace(tokens=np.concatenate(parts), starts=starts)


def by_document(seed=0):
    parts = documents(50, seed)
    return {
        "train": shards(parts[:40]), "validation": shards(parts[40:45]), "test": shards(parts[45:])
    }  # fmt: skip


def duplicated_documents(seed=0):
    """One of five validation documents also stands in train; still only a fifth of the runs."""
    parts = documents(50, seed)
    parts[40] = parts[7].copy()
    return {
        "train": shards(parts[:40]), "validation": shards(parts[40:45]), "test": shards(parts[45:])
    }  # fmt: skip


def stride_one_windows(seed=0, length=64):
    """Every window of the text, each starting one token after the last, dealt at random."""
    text = np.concatenate(documents(10, seed))
    windows = [text[i : i + length] for i in range(len(text) - length)]
    order = np.random.default_rng(seed).permutation(len(windows))
    cut = len(windows) * 9 // 10
    dealt = [windows[i] for i in order]
    return {"train": shards(dealt[:cut]), "validation": shards(dealt[cut:])}
