"""Random draws that are functions of (purpose, seed, index): no state, any order, any batch.

Source: the mixing function is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
import random

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def generator(purpose: str, seed: int, index: int) -> random.Random:
    """A fresh generator for one example; `purpose` keeps different uses of a seed apart."""
    return random.Random(_key(f"{purpose}/{seed}/{index}"))


def words(purpose: str, seed: int, indices: np.ndarray, n: int) -> np.ndarray:
    """(B, n) uint64: n random words for each of the B indices."""
    start = np.uint64(_key(f"{purpose}/{seed}"))
    # Array times scalar wraps silently, as it should; NumPy warns for scalars alone.
    per_row = mix(np.asarray(indices).astype(np.uint64) * _GOLDEN + start)
    steps = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    return mix(per_row[:, None] + steps)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters neighbouring values."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
