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

_NOT_UTF8, _NUL, _HIDDEN = "not UTF-8", "holds NUL bytes", "hidden"


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
            always counts. Hidden files and folders inside a folder are left out and counted.

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
                found += _folder_files(os.path.abspath(match), suffixes, report)
    # Named from where their paths part, so that a corpus keeps its names when it is moved.
    base = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    names = ((os.path.relpath(path, base).replace(os.sep, "/"), path) for path in found)
    files = stat_files(names, report)
    if not files:
        wanted = f" ending in {' or '.join(suffixes)}" if suffixes else ""
        found_else = f" Left out: {report.summary()}." if report.skipped else ""
        raise DataError(
            f"data.corpus.path = {paths!r}: expected files{wanted}, but found none.{found_else}"
        )
    return files


def _folder_files(folder: str, suffixes: tuple[str, ...], report: SourceReport) -> Iterator[str]:
    def is_visible(name: str) -> bool:
        return not name.rpartition("/")[2].startswith(".")

    def keep(name: str) -> bool:
        if suffixes and not name.endswith(suffixes):
            return False
        if not is_visible(name):
            report.skip(_HIDDEN, name)
        return is_visible(name)

    def enter(name: str) -> bool:
        if not is_visible(name):  # counted as one, as nothing inside is looked at
            report.skip(_HIDDEN, name + "/")
        return is_visible(name)

    return (path for _, path in walk(Path(folder), keep, enter))


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
    defect = _defect(data)
    if defect is not None:
        _skip_defect(file, defect, report)
        return None
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")


class _Defect(NamedTuple):
    """Why a file's bytes are not text, and where: `at` counts bytes from 0; -1 means everywhere."""

    reason: str
    at: int = -1
    byte: int = 0


def _defect(data: bytes) -> _Defect | None:
    if not data.removeprefix(codecs.BOM_UTF8):
        return _Defect("empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Defect(_NOT_UTF8, error.start, data[error.start])
    # UTF-16 of plain English is valid UTF-8 with a NUL beside each letter: that is not text.
    at = data.find(b"\0")
    return _Defect(_NUL, at) if at >= 0 else None


def _skip_defect(file: SourceFile, defect: _Defect, report: SourceReport) -> None:
    report.skip(defect.reason, file.name)
    if report.first_defect is None and defect.at >= 0:
        report.first_defect = (file.path, *_in_words(defect))


def _in_words(defect: _Defect) -> tuple[str, str]:
    """Where a file stops being UTF-8 text, and what can be done."""
    if defect.reason == _NUL:
        what = f"byte {defect.at} is NUL"
        if defect.at > 1:  # UTF-16 with a plain letter in front has one beside the first letter
            return what, "Such a file is no text; point data.corpus at text."
        encoding = "UTF-16LE" if defect.at else "UTF-16BE"
    else:
        what = f"byte {defect.at} is 0x{defect.byte:02x}"
        # 0xff and 0xfe begin the mark of UTF-16. Else Latin-1 is a guess, if one that always reads.
        encoding = "UTF-16" if defect.at == 0 and defect.byte >= 0xFE else "LATIN1"
    return what, (
        "If it is text in another encoding, convert it first, for example with: "
        f"iconv -f {encoding} -t UTF-8 OLD > NEW"
    )


def is_clean_text(file: SourceFile, report: SourceReport) -> bool:
    """Whether a file of any size is UTF-8 text, found in constant memory; counted if not."""
    try:
        defect = _find_defect(file.path)
        if defect is not None:
            _skip_defect(file, defect, report)
    except OSError as error:
        report.skip(f"unreadable ({error.strerror})", file.name)
        return False
    return defect is None


def _find_defect(path: str) -> _Defect | None:
    """As `_defect`, but for a file of any size."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    n_bytes, n_characters, nul_at = 0, 0, -1
    with open(path, "rb") as stream:
        while True:
            chunk = stream.read(CHUNK_BYTES)
            if nul_at < 0 and (found := chunk.find(b"\0")) >= 0:
                nul_at = n_bytes + found
            n_bytes += len(chunk)
            try:
                n_characters += len(decoder.decode(chunk, final=not chunk))
            except UnicodeDecodeError as error:
                # What the decoder was looking at ends where reading has come to.
                at = n_bytes - len(error.object) + error.start
                return _Defect(_NOT_UTF8, at, error.object[error.start])
            if not chunk:
                break
    if nul_at >= 0:
        return _Defect(_NUL, nul_at)
    return _Defect("empty") if n_characters == 0 else None
