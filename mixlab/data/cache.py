"""A content-addressed cache of folders: built once, whole or not at all, checked when opened.

A folder is built under a temporary name, synced, and renamed; so whatever carries its final name
is complete. A lock held while building makes a second process wait for the first one's result.
The kernel frees the lock when its holder dies, and the next builder removes what was left over.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixlab.core.errors import DataError
from mixlab.data.progress import Progress

_SEAL = "files.json"  # sizes and checksums of the folder's files
_WHOLE_BYTES = 64 << 20  # files up to this size are checked byte by byte
_SAMPLE_BYTES, _N_SAMPLES = 1 << 16, 256  # of larger ones, this many samples of this size


def build_once(folder: Path, what: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """Make sure that `folder` exists, calling `build(temporary_folder)` if it does not.

    Args:
        what: how messages call it, such as "the token shards".

    Raises:
        DataError: the disk refuses, or an existing folder was damaged.
    """
    if folder.exists():
        verify(folder, what)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), what, progress):
            if not folder.exists():
                _build(folder, build)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"data cache: {what} cannot be written under {folder.parent}: {reason}. "
            "Free space there, or choose another cache folder."
        ) from error
    verify(folder, what)
    return folder


def _locked(path: Path, what: str, progress: Progress) -> Any:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"Another process is building {what}; waiting for it.")
        return lock.acquire()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # Under the lock nobody else is building this folder: older leftovers are of killed processes.
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        build(partial)
        _seal(partial)
        os.rename(partial, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    record = {p.name: {"size": p.stat().st_size, "checksum": checksum(p)} for p in files}
    (folder / _SEAL).write_text(json.dumps(record, indent=1), encoding="ascii")
    for path in [*files, folder / _SEAL, folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync folders; the files themselves are synced.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(folder: Path, what: str) -> None:
    """Compare a finished folder with its seal.

    Raises:
        DataError: a file is missing, has another size, or other bytes; it is named.
    """

    def damaged(name: str, reason: str) -> DataError:
        return DataError(
            f"data cache: {folder / name} of {what} is damaged ({reason}). "
            f"Delete the folder {folder}; it is built again by the next run."
        )

    try:
        record = json.loads((folder / _SEAL).read_text(encoding="ascii"))
    except (OSError, ValueError):
        raise damaged(_SEAL, "unreadable") from None
    for name, expected in record.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                raise damaged(name, f"{size} bytes instead of {expected['size']}")
            if checksum(path) != expected["checksum"]:
                raise damaged(name, "its checksum differs")
        except OSError as error:
            raise damaged(name, error.strerror or str(error)) from None


def checksum(path: Path) -> str:
    """A hash of a file's size and bytes; of a large file, of samples spread over it."""
    size = path.stat().st_size
    hasher = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
    with open(path, "rb") as stream:
        if size <= _WHOLE_BYTES:
            while chunk := stream.read(1 << 20):
                hasher.update(chunk)
        else:
            for i in range(_N_SAMPLES):
                stream.seek((size - _SAMPLE_BYTES) * i // (_N_SAMPLES - 1))
                hasher.update(stream.read(_SAMPLE_BYTES))
    return hasher.hexdigest()
