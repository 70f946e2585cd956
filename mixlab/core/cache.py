"""Where prepared data and compiled kernels are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$MIXLAB_CACHE`, or `mixlab` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    own = os.environ.get("MIXLAB_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mixlab"
