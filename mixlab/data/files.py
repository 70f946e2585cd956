"""Finding source files in a fixed order, and reading them without trusting them."""

import codecs
import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixlab.core.config import digest
from mixlab.core.errors import DataError
from mixlab.data.documents import SourceReport

CHUNK_BYTES = 1 << 20
# A single document above this would need gigabytes to tokenise; text of this size has passages.
MAX_DOCUMENT_MIB = 32
MAX_DOCUMENT_BYTES = MAX_DOCUMENT_MIB << 20


class SourceFile(NamedTuple):
    """A regular file of a corpus; `name` is how reports call it, `path` has no links in it."""

    name: str
    path: str
    size: int
    mtime_ns: int


def fingerprint(files: Sequence[SourceFile]) -> dict[str, Any]:
    """What tells one state of a set of files from another without reading them."""
    listing = [list(f) for f in files]
    return {"files": len(files), "bytes": sum(f.size for f in files), "listing": digest(listing)}


def walk(
    root: Path, keep: Callable[[str], bool], enter: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """(name, path) of the files under `root`; links to folders are not followed, so no loops.

    Args:
        keep: told a file's name relative to `root`, says whether it belongs to the corpus.
        enter: told a folder's name relative to `root`, says whether to look inside.
    """
    for folder, subfolders, names in os.walk(root, followlinks=False):
        base = os.path.relpath(folder, root).replace(os.sep, "/")
        base = "" if base == "." else base + "/"
        subfolders[:] = sorted(s for s in subfolders if enter(base + s))
        for name in sorted(names):
            if keep(base + name):
                yield base + name, os.path.join(folder, name)


def stat_files(found: Iterator[tuple[str, str]], report: SourceReport) -> list[SourceFile]:
    """The regular files among `found`, each once however many links lead to it, by name."""
    files: list[SourceFile] = []
    seen: set[str] = set()
    folders: dict[str, str] = {}  # resolving each file's whole path anew takes most of the time
    for name, path in sorted(found):
        try:
            status = os.stat(path)
        except OSError as error:
            report.skip(f"unreadable ({error.strerror})", name)
            continue
        if not stat.S_ISREG(status.st_mode):
            report.skip("not a regular file", name)
        elif (real := _real_path(path, folders)) not in seen:
            seen.add(real)
            files.append(SourceFile(name, real, status.st_size, status.st_mtime_ns))
    return files


def _real_path(path: str, folders: dict[str, str]) -> str:
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def find_files(
    paths: str | Sequence[str], suffixes: tuple[str, ...], report: SourceReport
) -> list[SourceFile]:
    """The files that `paths` (files, folders, globs) stand for, sorted by name.

    Args:
        suffixes: which files of a folder count; empty means all. A file given by name or glob
            always counts. Hidden files and folders inside a folder are left out.

    Raises:
        DataError: a path that leads to no file.
    """
    found: list[str] = []
    for given in [paths] if isinstance(paths, str) else paths:
        expanded = os.path.expanduser(given)
        is_there = os.path.exists(expanded)
        matches = [expanded] if is_there else sorted(glob.glob(expanded, recursive=True))
        if not matches:
            raise DataError(
                f"data.corpus.path = {given!r}: expected an existing file, folder or glob, seen "
                f"from {os.getcwd()}. Check the spelling or give an absolute path."
            )
        for match in matches:
            if not os.path.isdir(match):
                found.append(os.path.abspath(match))
            elif is_there or "**" not in given:  # what ** matches inside is in the list already
                found += _folder_files(os.path.abspath(match), suffixes)
    # Named from where their paths part, so that a corpus keeps its names when it is moved.
    base = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    names = ((os.path.relpath(path, base).replace(os.sep, "/"), path) for path in found)
    files = stat_files(names, report)
    if not files:
        wanted = f" ending in {' or '.join(suffixes)}" if suffixes else ""
        raise DataError(f"data.corpus.path = {paths!r}: expected files{wanted}, but found none.")
    return files


def _folder_files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    def is_visible(name: str) -> bool:
        return not name.rpartition("/")[2].startswith(".")

    def is_wanted(name: str) -> bool:
        return is_visible(name) and (not suffixes or name.endswith(suffixes))

    return (path for _, path in walk(Path(folder), is_wanted, is_visible))


def read_text(file: SourceFile, report: SourceReport) -> str | None:
    """The text of a whole file, line endings untouched, or None with the reason counted."""
    if file.size > MAX_DOCUMENT_BYTES:
        report.skip(f"larger than {MAX_DOCUMENT_MIB} MiB", file.name)
        return None
    try:
        data = Path(file.path).read_bytes()
    except OSError as error:
        report.skip(f"unreadable ({error.strerror})", file.name)
        return None
    reason = _defect(data)
    if reason:
        report.skip(reason, file.name)
        return None
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def _defect(data: bytes) -> str:
    if not data.removeprefix(codecs.BOM_UTF8):
        return "empty"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    # UTF-16 of plain English is valid UTF-8 with a NUL beside each letter: that is not text.
    return "holds NUL bytes" if b"\0" in data else ""


def is_clean_text(file: SourceFile, report: SourceReport) -> bool:
    """Whether a file of any size is UTF-8 text, found in constant memory; counted if not."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    n_characters, holds_nul = 0, False
    try:
        with open(file.path, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                holds_nul = holds_nul or b"\0" in chunk
                n_characters += len(decoder.decode(chunk))
        n_characters += len(decoder.decode(b"", final=True))
    except UnicodeDecodeError:
        report.skip("not UTF-8", file.name)
        return False
    except OSError as error:
        report.skip(f"unreadable ({error.strerror})", file.name)
        return False
    if n_characters == 0 or holds_nul:
        report.skip("holds NUL bytes" if holds_nul else "empty", file.name)
        return False
    return True
