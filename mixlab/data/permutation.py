"""A random order of n items that is computed, not stored: item i of epoch e in constant memory.

A Feistel network is a bijection whatever its round function; here on the smallest even number of
bits that holds n. Results outside 0..n-1 are encrypted again until they fall inside ("cycle
walking"), which keeps it a bijection on 0..n-1.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), section 3. Ours:
the round function is the finaliser of splitmix64, as nothing here has to be secret.
"""

import hashlib

import numpy as np

_N_ROUNDS = 6


class Permutation:
    """A bijection of 0..n-1, fixed by (n, seed, epoch) on every machine."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        assert n >= 1
        self.n = n
        self._half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        text = f"mixlab order/{seed}/{epoch}".encode()
        key = hashlib.blake2b(text, digest_size=8 * _N_ROUNDS).digest()
        self._keys = np.frombuffer(key, dtype="<u8").astype(np.uint64)

    def __call__(self, items: np.ndarray) -> np.ndarray:
        """The items' places, same shape, int64; every item must be in 0..n-1."""
        places = self._encrypt(np.asarray(items).astype(np.uint64))
        # The domain is at most four times n, so a handful of rounds ends it for all items.
        while (outside := places >= self.n).any():
            places[outside] = self._encrypt(places[outside])
        return places.astype(np.int64)

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser; unsigned overflow wraps, as it should."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
