"""How many rows of logits a GPU works on at once."""

CHUNK_BYTES = 2**30
"""Memory of one chunk of logits, 1 GiB: large enough for products at full speed, and for few sums
of the weight's gradient, each of which reads and writes the whole of it."""


def chunk_rows(n_rows: int, n_vocab: int, item_bytes: int) -> int:
    """As many as the memory holds, evenly cut, a multiple of a matrix product's tile."""
    most = max(1, CHUNK_BYTES // (n_vocab * item_bytes))
    n_chunks = max(1, -(-n_rows // most))
    even = -(-n_rows // n_chunks)
    return min(most, max(128, -(-even // 128) * 128))
