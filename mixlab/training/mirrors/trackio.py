"""trackio: a local database in the user's cache; see it with `trackio show --project mixlab`.

It stays on this machine unless the user's own settings (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL) say
otherwise.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, ClassVar, Literal

from mixlab.training.mirrors.base import MirrorConfig, MirroredRun


class TrackioMirrorConfig(MirrorConfig):
    """A local trackio database."""

    kind: Literal["trackio"] = "trackio"
    project: str = "mixlab"
    """Project that the run is filed under."""

    package: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "trackio"

    def open(self, run: MirroredRun) -> "TrackioMirror":
        self.check()
        import trackio

        # It prints how to start its dashboard, in the middle of our status lines.
        with redirect_stdout(io.StringIO()):
            opened = trackio.init(
                project=self.project,
                name=run.name,
                config=dict(run.config),
                resume="allow" if run.is_resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return TrackioMirror(trackio, opened)


class TrackioMirror:
    def __init__(self, trackio: Any, run: Any) -> None:
        self._trackio, self._run = trackio, run

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        # The module's finish, not the run's: it also forgets the run, which trackio would
        # otherwise finish once more when the interpreter ends.
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
