"""The manifest of a checkpoint: which files it has, their sizes and hashes, and its own hash."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_FORMAT, _VERSION = "mixlab checkpoint", 2
_WITHOUT_PARTS = 1  # the version of checkpoints that any earlier program reads
MANIFEST, STATE = "checkpoint.json", "state.json"
FILE_NAME = re.compile(r"state\.json|[a-z][a-z0-9_]{0,63}(\.part\d{1,5}of\d{1,5})?\.safetensors")


class DamagedError(Exception):
    """Why a checkpoint is refused, in words that follow its path and a colon."""


def encode(
    step: int, files: Mapping[str, Any], tied: Mapping[str, Any], parts: Mapping[str, Any]
) -> bytes:
    """The manifest of `files` (name -> bytes, blake2b), `tied` (group -> alias -> name) and `parts`
    (group -> n, the number of its files, and rows, the tensors that each of them has rows of)."""
    document = {
        "format": _FORMAT,
        "version": _VERSION if parts else _WITHOUT_PARTS,
        "step": step,
        "files": files,
        "tied": tied,
        **({"parts": parts} if parts else {}),
    }
    return json_bytes(document | {"blake2b": digest(json_bytes(document))})


def parse(name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file; `name` is for the message."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError(f"{name} is not valid JSON") from None
    if not isinstance(document, dict):
        raise DamagedError(f"{name} does not hold a JSON object")
    return document


def decode(data: bytes) -> dict[str, Any]:
    """The manifest as a dict, with every type checked and its own hash confirmed.

    Raises:
        DamagedError: these bytes are not what `encode` gives.
    """
    document = parse(MANIFEST, data)
    if document.get("format") != _FORMAT:
        raise DamagedError(f"{MANIFEST} is not that of a checkpoint")
    version = document.get("version")
    if version not in (_WITHOUT_PARTS, _VERSION) or isinstance(version, bool):
        raise DamagedError(
            f"its format has version {document.get('version')!r}, this program reads {_VERSION}"
        )
    stated = document.pop("blake2b", None)
    # Compared byte by byte as well, because other bytes can hold the same JSON.
    own = digest(json_bytes(document))
    if stated != own or json_bytes(document | {"blake2b": own}) != data:
        raise DamagedError(f"{MANIFEST} was altered")
    if version == _WITHOUT_PARTS:
        document.setdefault("parts", {})
    if document.keys() != {"format", "version", "step", "files", "tied", "parts"}:
        raise DamagedError(f"{MANIFEST} has unknown or missing keys")
    if not is_count(document["step"]) or not isinstance(document["files"], dict):
        raise DamagedError(f"{MANIFEST} has a value of a wrong type")
    for name, entry in document["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise DamagedError(f"{MANIFEST} names a file {name!r}, which cannot be ours")
        is_entry = isinstance(entry, dict) and entry.keys() == {"bytes", "blake2b"}
        if not is_entry or not is_count(entry["bytes"]) or not isinstance(entry["blake2b"], str):
            raise DamagedError(f"{MANIFEST} has a malformed entry for {name}")
    if STATE not in document["files"]:
        raise DamagedError(f"{MANIFEST} does not name {STATE}")
    tied = document["tied"]
    if not isinstance(tied, dict) or not all(_is_text_table(table) for table in tied.values()):
        raise DamagedError(f"{MANIFEST} has a malformed table of tied tensors")
    parts = document["parts"]
    if not isinstance(parts, dict) or not all(_is_part_table(table) for table in parts.values()):
        raise DamagedError(f"{MANIFEST} has a malformed table of parts")
    return document


def is_count(value: object) -> bool:
    """Whether this is a whole number from 0 and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_part_table(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"n", "rows"}
        and is_count(value["n"])
        and isinstance(value["rows"], list)
        and all(isinstance(name, str) for name in value["rows"])
    )


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """The one way in which we write JSON."""
    try:
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    except RecursionError:
        raise DamagedError(f"{MANIFEST} is nested too deeply") from None


def digest(data: bytes) -> str:
    """The hash by which files are told apart."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()
