"""How much of the held-out text also stands in the training text?

Measured on the token files themselves, whatever the manifest says of how they were made.
"""

from typing import Any

import numpy as np

from mixlab.checks.base import CheckContext, Finding

RUN = 32
"""Tokens of a run that is looked for, a power of 2: about 20 to 30 words, longer than set phrases.
A document of at least this many counts as shared when all its tokens agree."""
MAX_FRAC = 0.3
"""Tolerated share of held-out runs that occur in train, the same as the data's own limit."""
N_SAMPLED = 200_000
_PIECE = 1 << 20  # training tokens at a time, to bound memory
_ODD = np.uint64(0x9E3779B97F4A7C15)


def check_split_overlap(context: CheckContext) -> Finding:
    """Runs of tokens and whole documents of validation and test that occur in train."""
    if context.splits is None:
        return Finding(
            "not applicable", "no text was read",
            "A recipe alone has no text; check a run, or add --data to prepare the recipe's.", {},
        )  # fmt: skip
    train = context.splits["train"]
    figures: dict[str, Any] = {}
    parts = []
    for name in ("validation", "test"):
        held_out = context.splits.get(name)
        if held_out is None:
            continue
        frac = shared_runs_frac(train.tokens, held_out.tokens)
        n_shared = n_shared_documents(train, held_out)
        figures[f"{name}_runs_in_train_frac"] = frac
        figures[f"{name}_documents_in_train"] = n_shared
        parts.append(
            f"{name}: {100 * frac:.1f} % of runs of {RUN} tokens and {n_shared} whole documents "
            "occur in train"
        )
    measured = "; ".join(parts)
    fracs = [value for key, value in figures.items() if key.endswith("_frac")]
    n_documents = sum(
        value for key, value in figures.items() if key.endswith("_documents_in_train")
    )
    if max(fracs) <= MAX_FRAC and n_documents == 0:
        meaning = "Held-out losses are on text that the model has not been shown."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Held-out text was trained on: its loss measures memory. Split by whole documents before "
        "cutting windows, without overlapping windows, and drop duplicates first."
    )
    return Finding("fail", measured, meaning, figures)


def shared_runs_frac(train: np.ndarray, held_out: np.ndarray) -> float:
    """Share of the held-out runs of `RUN` tokens that occur anywhere in train.

    A long held-out split is sampled evenly.
    """
    runs = _run_hashes(held_out)
    if not len(runs):
        return 0.0
    runs = runs[:: max(1, len(runs) // N_SAMPLED)]
    wanted = np.unique(runs)
    is_found = np.zeros(len(wanted), dtype=bool)
    for start in range(0, len(train), _PIECE):
        hashes = np.sort(_run_hashes(train[start : start + _PIECE + RUN - 1]))
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        is_found[places[wanted[places] == hashes]] = True
    return float(is_found[np.searchsorted(wanted, runs)].mean())


def n_shared_documents(train: Any, held_out: Any) -> int:
    """Held-out documents of at least `RUN` tokens that stand whole in train, token for token."""
    seen = {_content(train, i) for i in range(len(train.starts) - 1)}
    return sum(
        _content(held_out, i) in seen
        for i in range(len(held_out.starts) - 1)
        if held_out.starts[i + 1] - held_out.starts[i] >= RUN
    )


def _content(shards: Any, i: int) -> int:
    tokens = shards.tokens[shards.starts[i] : shards.starts[i + 1]]
    return hash(tokens.tobytes())


def _run_hashes(tokens: np.ndarray) -> np.ndarray:
    """(n - RUN + 1,) uint64, a hash of each run; runs of twice the length from two halves."""
    hashes = (tokens.astype(np.uint64) + np.uint64(1)) * _ODD
    hashes ^= hashes >> np.uint64(29)  # so that sums of neighbours do not commute
    length = 1
    while length < RUN:
        if len(hashes) <= length:
            return np.empty(0, dtype=np.uint64)
        hashes = hashes[:-length] * _ODD + (hashes[length:] ^ (hashes[length:] >> np.uint64(31)))
        length *= 2
    return hashes
