"""To which split an example belongs: a function of its split key, and of nothing else."""

import hashlib

SPLITS = ("train", "validation", "test")

SPLIT_VERSION = 1
"""Goes up whenever some key moves to another split."""
TEST_FRAC = 0.2
"""Fraction of the classes of equivalent examples that belong to the test split."""
VALIDATION_FRAC = 0.1


def split_of(split_key: bytes) -> str:
    """The split of all examples with this key; takes no seed, so that seeds cannot mix splits."""
    key = b"mixlab split %d/" % SPLIT_VERSION + split_key
    place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") / 2**64
    if place < TEST_FRAC:
        return "test"
    return "validation" if place < TEST_FRAC + VALIDATION_FRAC else "train"
