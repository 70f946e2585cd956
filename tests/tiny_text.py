"""Text for tests that train."""

import random
from pathlib import Path


def write_corpus(folder: Path, *, n_files: int = 40, n_words: int = 240, seed: int = 0) -> Path:
    """Files of random words from one small vocabulary: no 13 of them in a row come twice."""
    folder.mkdir(parents=True, exist_ok=True)
    g = random.Random(seed)
    words = ["".join(g.choices("abcdefghij", k=g.randint(1, 7))) for _ in range(80)]
    for i in range(n_files):
        lines = (" ".join(g.choices(words, k=9)) for _ in range(n_words // 9))
        (folder / f"doc{i:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
