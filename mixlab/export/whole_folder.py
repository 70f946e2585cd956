"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixlab.core.errors import LabError


class OutputError(LabError):
    """A folder cannot be written where it was asked for."""


def require_free(path: Path) -> None:
    """Refuse a place that is taken; an empty folder is free.

    Raises:
        OutputError: names what lies there.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"--out {path}: is a file or a link: expected a name that is still free.")
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(
            f"--out {path}: expected a new or an empty folder, and this one is not empty. Choose "
            "another name, or empty it first."
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` when all went well.

    It is made beside `path`, so that the renaming is one step of the file system, and it is removed
    when anything fails, Ctrl-C included.

    Raises:
        OutputError: the place is taken or cannot be written, or the disk is full.
    """
    require_free(path)
    partial = path.absolute().parent / f".{path.absolute().name}.{os.getpid()}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        os.replace(partial, path)  # onto an empty folder too
    except OSError as error:
        raise OutputError(
            f"--out {path}: could not be written ({error.strerror or error}). Nothing is left of "
            "it. Free some space, or choose a folder that you may write to."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
