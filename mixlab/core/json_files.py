"""JSON documents and JSON lines on disk, readable after a crash at any moment.

A document is replaced atomically. A line counts once its newline is written. Both are strict JSON:
a number that is not finite is stored as null, which every tool reads; what went wrong is told by
the status in a run's summary, not by a NaN in its metrics.
"""

import errno
import json
import math
import numbers
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from mixlab.core.errors import RunError


def to_plain(value: Any) -> Any:
    """`value` as strict JSON data: NaN and infinities become None, NumPy scalars plain numbers."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


# --- documents ----------------------------------------------------------------------------------


def write_bytes_atomically(path: Path, content: bytes) -> Path:
    """Write beside `path`, sync, rename: after a crash there is the old file or the new one.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    # Unique among processes of other machines, too, which may write to a shared folder.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise _write_error(path, error, "What was there before is intact.") from None
    return path


def write_json(path: Path, value: Any) -> Path:
    content = json.dumps(to_plain(value), indent=2, allow_nan=False) + "\n"
    return write_bytes_atomically(path, content.encode())


def read_json(path: Path) -> Any:
    """The document, a mapping, or None when there is no such file.

    Raises:
        RunError: it exists but is no readable JSON object.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore it from a copy.") from None
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: expected a JSON object. Restore it from a copy.")
    return document


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power failure, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- lines --------------------------------------------------------------------------------------


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line; it has reached the system before this returns.

    Raises:
        RunError: the disk is full or the file cannot be written; earlier lines are intact.
    """
    line = json.dumps(to_plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    try:
        with path.open("ab+", buffering=0) as file:
            end = _drop_torn_line(file)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                # If this fails too, readers leave the torn line out and the next append drops it.
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise _write_error(path, error, "Lines written before are intact.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line; an absent file has none, and a torn last line is left out.

    Raises:
        RunError: a complete line is not a JSON object; names the line.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    return [_parse_line(path, number, line) for number, line in enumerate(lines, start=1)]


def read_checked_lines(path: Path, n_bytes: int) -> str:
    """The first `n_bytes`, as `synced_size` gave them, after a look at every line.

    Raises:
        RunError: the file is missing or shorter, or a line is not a JSON object; names the line.
    """
    try:
        content = path.read_bytes() if n_bytes else b""
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) < n_bytes:
        state = f"has {len(content)} bytes" if path.exists() else "is missing"
        raise RunError(
            f"{path} {state}, but the checkpoint was saved when it had {n_bytes} bytes: lines were "
            "lost. Restore the file, or start a new run."
        )
    content = content[:n_bytes]
    if content and not content.endswith(b"\n"):
        raise RunError(
            f"{path} is damaged: byte {n_bytes} should end a line. Restore the file, or start a "
            "new run."
        )
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        _parse_line(path, number, line)
    return content.decode("utf-8")


def synced_size(path: Path) -> int:
    """Bytes of complete lines, forced to the disk first: a checkpoint may rely on them."""
    if not path.exists():
        return 0
    try:
        with path.open("rb+", buffering=0) as file:
            os.fsync(file.fileno())
            end = _end_of_last_line(file)
        _sync_folder(path.parent)
        return end
    except OSError as error:
        raise _write_error(path, error) from None


def truncate_lines(path: Path, n_bytes: int) -> None:
    """Cut the file back to `n_bytes`, as `synced_size` gave them.

    Raises:
        RunError: the file is shorter than that, so lines were lost.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < n_bytes:
        raise RunError(
            f"{path} has {size} bytes, but the checkpoint was saved when it had {n_bytes}: "
            "lines were lost. Resume from an older checkpoint, or start a new run."
        )
    if size == n_bytes:
        return
    try:
        with path.open("rb+", buffering=0) as file:
            file.truncate(n_bytes)
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_error(path, error) from None


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path}, line {number} is damaged: {error}. Restore the file, or start a new run."
        ) from None
    if not isinstance(row, dict):
        raise RunError(f"{path}, line {number} is damaged: expected a JSON object.")
    return row


def _end_of_last_line(file: BinaryIO) -> int:
    """The offset behind the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _drop_torn_line(file: BinaryIO) -> int:
    """Cut off what a killed writer left behind the last newline; the size after that."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    end = _end_of_last_line(file)
    file.truncate(end)
    return end


def _write_error(path: Path, error: OSError, remark: str = "") -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way_out = "The disk is full: free some space."
    else:
        way_out = f"{error.strerror or error}."
    return RunError(f"{path} cannot be written. {way_out} {remark}".rstrip())
