"""TensorBoard: event files in `<run>/tensorboard`; see them with `tensorboard --logdir runs`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from mixlab.training.mirrors.base import MirrorConfig, MirroredRun


class TensorBoardMirrorConfig(MirrorConfig):
    """Event files for TensorBoard in the run folder."""

    kind: Literal["tensorboard"] = "tensorboard"

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"

    def open(self, run: MirroredRun) -> "TensorBoardMirror":
        self.check()
        # Not torch.utils.tensorboard: that one needs torch for the same files.
        from tensorboard.summary import Writer

        return TensorBoardMirror(Writer(str(run.path / "tensorboard")))


class TensorBoardMirror:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
