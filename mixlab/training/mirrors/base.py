"""What a mirror is: a place outside the run folder that shows a run's numbers while it trains.

The run folder is the record; a mirror only copies it, so a mirror that fails costs its picture and
never the run. Nothing here touches tensors, and no tracker is imported before a run opens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mixlab.core.config import Config
from mixlab.core.errors import MissingPackageError


class Mirror(Protocol):
    """An open mirror of one run."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Show the numbers of one step; names look like `train/loss_nats`."""

    def close(self) -> None:
        """Write what is pending; nothing is logged afterwards."""


@dataclass(frozen=True, kw_only=True)
class MirroredRun:
    """What a mirror may know of its run."""

    name: str
    path: Path
    config: Mapping[str, Any]  # the resolved config as plain data
    is_resumed: bool


class MirrorConfig(Config):
    """Base of the mirrors' configs."""

    package: ClassVar[str]  # what is imported
    extra: ClassVar[str]  # the extra of mixlab that installs it

    def check(self) -> None:
        """Called before a run starts.

        Raises:
            MissingPackageError: the mirror's package is not installed.
        """
        if find_spec(self.package) is None:
            raise MissingPackageError(self.package, f"log.mirrors, kind {self.package}", self.extra)

    def open(self, run: MirroredRun) -> Mirror:
        raise NotImplementedError
