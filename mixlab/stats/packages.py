"""The optional packages behind the statistics, asked for before any compute is spent."""

from importlib.util import find_spec

from mixlab.core.errors import MissingPackageError


def require_stats(needed_for: str) -> None:
    """Look whether scipy and statsmodels are there, without importing them.

    Raises:
        MissingPackageError: one is absent; `needed_for` begins the sentence.
    """
    for package in ("scipy", "statsmodels"):
        if find_spec(package) is None:
            raise MissingPackageError(package, needed_for, "stats")
