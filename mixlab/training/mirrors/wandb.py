"""Weights & Biases; by default it only writes to `<run>/wandb`, for `wandb sync` to send later."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from mixlab.core.json_files import write_bytes_atomically
from mixlab.training.mirrors.base import MirrorConfig, MirroredRun


class WandbMirrorConfig(MirrorConfig):
    """Weights & Biases, online or offline."""

    kind: Literal["wandb"] = "wandb"
    project: str = "mixlab"
    """Project that the run is filed under."""
    mode: Literal["offline", "online"] = "offline"
    """`online` sends every row to the server of the account that `wandb login` set up."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    def open(self, run: MirroredRun) -> "WandbMirror":
        self.check()
        import wandb

        # wandb makes its folder inside this one, and falls back to another place if it is absent.
        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
        )
        opened = wandb.init(
            project=self.project,
            name=run.name,
            id=_run_id(folder / "id.txt"),
            resume="allow" if self.mode == "online" else None,
            mode=self.mode,
            dir=str(run.path),
            config=dict(run.config),
            settings=settings,
        )
        # A resumed run repeats steps, which wandb's own counter refuses; ours is the x axis.
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")
        return WandbMirror(opened)


class WandbMirror:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log({"step": step, **row})

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path) -> str:
    """The name under which every part of a resumed run meets on the server; made once per run."""
    if not path.exists():
        write_bytes_atomically(path, uuid.uuid4().hex[:16].encode())
    return path.read_text().strip()
