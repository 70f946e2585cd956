"""The run folder: the one format that training writes and that reports and dashboards read.

    runs/<name>/
      config.yaml  environment.json  data.json     what was asked, on what machine, on which data
      kernels.json                                 on a GPU: the backends that were tried and taken
      metrics.jsonl  evals.jsonl  samples.jsonl    append-only, one JSON object per line
      checkpoints/  plots/  log.txt  lock
      summary.json  report.md                      written at the end

How these files survive a crash is the matter of `core/json_files.py`.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from mixlab.core.config import flatten
from mixlab.core.errors import RunError
from mixlab.core.json_files import (
    append_line,
    read_json,
    read_lines,
    synced_size,
    truncate_lines,
    write_bytes_atomically,
    write_json,
)
from mixlab.core.nearest import nearest

Columns = dict[str, list[Any]]


class RunDir:
    """One run folder. Construct with `create`, `create_next` or `open`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # --- making and finding one -----------------------------------------------------------

    @classmethod
    def create(cls, path: Path | str) -> "RunDir":
        """Make a new folder; parents are made as needed.

        Raises:
            RunError: the folder exists already, or cannot be made or written.
        """
        run = cls(path)
        if not run._mkdir():
            run.refuse_taken()
        return run

    def refuse_taken(self) -> None:
        """Refuse a name at which something lies already, and say what.

        Raises:
            RunError: its advice is to resume only where a run lies.
        """
        path = self.path
        if not path.exists() and not path.is_symlink():
            return
        if is_run(path):
            what = "is a run already"
            way_out = f"Go on with that run by `mixlab train --resume {shlex.quote(str(path))}`, or"
            way_out += " choose another name."
        elif not path.is_dir():
            what, way_out = "is a file", "Choose another name."
        elif not path.name:  # "." or "": nobody should be told to delete it
            what, way_out = "is the folder you are in", "Name a new one, such as runs/first."
        else:
            what, way_out = "is a folder already", "Choose another name, or delete it first."
        raise RunError(f"run folder {path} {what}: expected a name that is still free. {way_out}")

    @classmethod
    def create_next(cls, root: Path | str, name: str) -> "RunDir":
        """Make `root/name`, or `root/name-2`, `root/name-3`, ...: the first that is free.

        The folder is made here rather than only named, so that two processes which start at the
        same moment get two folders.
        """
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        number = 1
        while True:
            run = cls(Path(root) / (stem if number == 1 else f"{stem}-{number}"))
            if run._mkdir():
                return run
            number += 1

    @classmethod
    def open(cls, path: Path | str) -> "RunDir":
        """An existing run.

        Raises:
            RunError: there is no run at `path`; names what is missing and the nearest run.
        """
        run = cls(path)
        if is_run(run.path):
            return run
        if run.path.is_dir():
            problem = f"{run.path} is not a run folder: it holds no {run.config_path.name}."
        elif run.path.exists():
            problem = f"{run.path} is a file: expected a run folder."
        else:
            problem = f"there is no run folder {run.path}."
        raise RunError(f"{problem} {_nearest_run(run.path)}".rstrip())

    def _mkdir(self) -> bool:
        """Whether the folder is new."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
        except FileExistsError:
            # The parent may be the file that stands in the way; then no name would be free.
            if not self.path.parent.is_dir():
                raise RunError(
                    f"run folder {self.path} cannot be made: {self.path.parent} is a file."
                ) from None
            return False
        except OSError as error:
            raise RunError(
                f"run folder {self.path} cannot be made: {error.strerror}. "
                "Choose a folder that you may write to."
            ) from None
        return True

    # --- paths ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def data_path(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evals_path(self) -> Path:
        return self.path / "evals.jsonl"

    @property
    def samples_path(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.md"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots_path(self) -> Path:
        return self.path / "plots"

    @property
    def curves_path(self) -> Path:
        return self.plots_path / "training_curves.png"

    # --- exclusive use --------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; the system frees it when the holder dies, however it dies.

        Raises:
            RunError: another process holds it, or the folder cannot be written.
        """
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunError(
                f"run folder {self.path} is in use by another process. "
                "Wait until it ends, or stop it there by Ctrl-C, which saves; then try again."
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"run folder {self.path} cannot be locked: {reason}.") from None
        try:
            yield
        finally:
            lock.release()

    # --- documents and lines --------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Replace the document `name`; a reader sees the old or the new one, never a part."""
        return write_bytes_atomically(self.path / name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        return write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """The document `name`, or None when the run has not written it."""
        return read_json(self.path / name)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to the `.jsonl` file `name`; it reaches the system before this returns."""
        append_line(self.path / name, row)

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """Every complete line of `name`; an absent file has none."""
        return read_lines(self.path / name)

    def jsonl_size(self, name: str) -> int:
        """Bytes of complete lines in `name`, now safe on the disk, for a checkpoint to record."""
        return synced_size(self.path / name)

    def truncate_jsonl(self, name: str, n_bytes: int) -> None:
        """Cut `name` back to the size that `jsonl_size` gave when a checkpoint was saved."""
        truncate_lines(self.path / name, n_bytes)

    def metrics(self) -> Columns:
        """metrics.jsonl as equally long columns; see `to_columns`."""
        return to_columns(self.read_jsonl("metrics.jsonl"))

    def evals(self) -> Columns:
        """evals.jsonl as equally long columns; see `to_columns`."""
        return to_columns(self.read_jsonl("evals.jsonl"))


# --- runs beside each other ---------------------------------------------------------------------


def is_run(path: Path) -> bool:
    """A run is a folder with a config.yaml, the first file that training writes."""
    return (path / "config.yaml").is_file()


def list_runs(root: Path | str) -> list[Path]:
    """The run folders directly inside `root`, by name; none if it does not exist."""
    root = Path(root)
    return sorted(p for p in root.iterdir() if is_run(p)) if root.is_dir() else []


def _nearest_run(path: Path) -> str:
    """A sentence that helps someone who mistyped the name of a run, or left out `runs/`."""
    beside = [*list_runs(path.parent), *list_runs(path.parent / "runs")]
    by_name = {run.name: run for run in reversed(beside)}  # the folder asked for goes first
    meant = nearest(path.name, by_name)
    if meant is not None:
        return f"Did you mean {by_name[meant]}?"
    if by_name:
        names = ", ".join(str(run) for run in beside[:8])
        return f"The runs are {names}{', ...' if len(beside) > 8 else ''}."
    return "Make one with: mixlab train quickstart"


def to_columns(rows: list[dict[str, Any]]) -> Columns:
    """Rows as columns of one length, ready for pandas.

    A nested mapping becomes columns with dotted names. Where a row lacks a value it is None.
    """
    columns: Columns = {}
    for index, row in enumerate(rows):
        for key, value in flatten(row):
            if key not in columns:
                columns[key] = [None] * len(rows)
            columns[key][index] = value
    return columns
