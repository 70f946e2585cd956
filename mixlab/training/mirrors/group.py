"""All mirrors of one run, behind one call; a mirror that fails is dropped and the run goes on."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixlab.core.config import flatten
from mixlab.core.errors import MissingPackageError
from mixlab.training.mirrors.base import Mirror, MirrorConfig, MirroredRun


def check_mirrors(configs: Sequence[MirrorConfig]) -> None:
    """Before a run is made.

    Raises:
        MissingPackageError: a mirror's package is not installed.
    """
    for config in configs:
        config.check()


class Mirrors:
    """The open mirrors of one run; without any, every call is free."""

    def __init__(self, mirrors: Mapping[str, Mirror], warn: Callable[[str], None]) -> None:
        """
        Args:
            mirrors: by the name that a warning calls them.
            warn: takes one sentence for each mirror that fails; the run's log and notes.
        """
        self._open = dict(mirrors)
        self._warn = warn

    @classmethod
    def open(
        cls, configs: Sequence[MirrorConfig], run: MirroredRun, warn: Callable[[str], None]
    ) -> "Mirrors":
        """Open each; one that cannot start is warned about and left out.

        Raises:
            MissingPackageError: a mirror's package is not installed.
        """
        group = cls({}, warn)
        for config in configs:
            name = config.package
            while name in group._open:
                name += "'"
            try:
                group._open[name] = config.open(run)
            except MissingPackageError:
                group.close()
                raise
            except Exception as error:  # whatever a tracker raises, the run is worth more
                warn(_sentence(name, "could not be started", error))
        return group

    def log(self, step: int, row: Mapping[str, Any], group: str = "train") -> None:
        """Send the numbers of a row of metrics.jsonl or evals.jsonl.

        Nested values get dotted names; what is no number (a split's name, None) is left out.

        Args:
            group: goes in front of each name: `train/loss_nats`, `validation/loss_nats`.
        """
        if not self._open:
            return
        numbers_only = {
            f"{group}/{name}": float(value)
            for name, value in flatten(row)
            if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool)
        }
        self._each(lambda mirror: mirror.log(step, numbers_only), "failed and was switched off")

    def close(self) -> None:
        self._each(lambda mirror: mirror.close(), "could not be closed")
        self._open.clear()

    def _each(self, act: Callable[[Mirror], None], what: str) -> None:
        for name, mirror in list(self._open.items()):
            try:
                act(mirror)
            except Exception as error:  # whatever a tracker raises, the run is worth more
                del self._open[name]
                self._warn(_sentence(name, what, error))


def _sentence(name: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return (
        f"The mirror {name} {what} ({type(error).__name__}: {reason}). "
        "The run goes on; its folder holds every number."
    )
