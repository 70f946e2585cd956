"""Checkpoints: directories of safetensors and JSON that are complete or do not exist.

    checkpoints/step-000500/model.safetensors    one file per group of tensors
                            state.json           everything that is not a tensor
                            checkpoint.json      the manifest: sizes and hashes, its own included
    checkpoints/best.json                        which step has the lowest validation loss

A group that ranks have parts of is in as many files (`training/parts.py`), and read as a whole.

A checkpoint is written under a temporary name, synced and renamed. Names in the folder that begin
with a dot are what a killed process left; the next save clears them away:

    .tmp-step-000500     a save that did not finish
    .old-step-000500     displaced by a later save of the same step; counts until that one is there
    .gone-step-000500    being deleted

One process writes (the run folder's lock sees to that); any number may read meanwhile. Nothing is
ever unpickled.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixlab.core.errors import CheckpointError
from mixlab.training import manifest, tensor_file
from mixlab.training.generators import collect_generators, restore_generators
from mixlab.training.manifest import MANIFEST, STATE, DamagedError
from mixlab.training.optimizers.base import copy_exactly
from mixlab.training.parts import Parts

__all__ = [
    "Best",
    "Checkpoint",
    "being_saved",
    "collect_generators",
    "finish_files",
    "load",
    "load_module",
    "newest_good",
    "prune",
    "read_best",
    "restore_generators",
    "save",
    "step_of",
    "step_path",
    "steps",
    "write_best",
    "write_synced",
]

_BEST = "best.json"
_TMP, _OLD, _GONE = ".tmp-", ".old-", ".gone-"
_STEP_NAME = re.compile(r"step-(\d{6,18})")
# Far above what we write; a limit, so that a damaged or hostile file cannot fill the memory.
_MAX_JSON_BYTES = 64 * 2**20


class Checkpoint(NamedTuple):
    """A checkpoint in memory, verified."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]  # by group; tied names share one tensor
    state: dict[str, Any]


class Best(NamedTuple):
    """The pointer to the best checkpoint so far."""

    step: int
    loss_nats: float


# --- names ------------------------------------------------------------------------------------


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or would be."""
    path = folder / f"step-{step:06d}"
    displaced = folder / f"{_OLD}{path.name}"
    return displaced if displaced.is_dir() and not os.path.lexists(path) else path


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint states."""
    match = _STEP_NAME.fullmatch(path.name.removeprefix(_OLD))
    if match is None:
        raise CheckpointError(f"{path}: expected a checkpoint folder such as step-000500.")
    return int(match[1])


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, damaged ones included, in order."""
    names = (name.removeprefix(_OLD) for name in _names(folder))
    return sorted({int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name))})


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.") from None


# --- saving -----------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step` and return its path, once it is safe on the disk.

    `tensors` maps groups (model, optimizer, ...) to named tensors, `state` is plain JSON data. An
    earlier checkpoint of the same step is replaced, and stays in force until this one is complete.

    Raises:
        CheckpointError: the system refused, for example because the disk is full. Every earlier
            checkpoint is as it was.
    """
    with being_saved(folder, step) as tmp:
        _write_files(tmp, step, tensors, state)
    return folder / f"step-{step:06d}"


@contextmanager
def being_saved(folder: Path, step: int) -> Iterator[Path]:
    """A new temporary folder, to be filled in the block; becomes the checkpoint after it.

    Raises:
        CheckpointError: as `save` does; the block's own errors leave no trace in the folder.
    """
    path = folder / f"step-{step:06d}"
    tmp, old = folder / f"{_TMP}{path.name}", folder / f"{_OLD}{path.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        tmp.mkdir()
        yield tmp
        _sync_folder(tmp)
        if os.path.lexists(path):
            os.rename(path, old)
            _sync_folder(folder)
        os.rename(tmp, path)
        _sync_folder(folder)
        if os.path.lexists(old):
            _remove(old)
    except BaseException as error:
        _undo(path, tmp, old)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{path} could not be written: {error.strerror or error}. {_way_out(folder)}"
        ) from None


def _write_files(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    files, tied = {}, {}
    for group, members in tensors.items():
        name = f"{group}.safetensors"
        assert manifest.FILE_NAME.fullmatch(name), f"{group!r} cannot be the name of a group"
        aliases = tensor_file.ties(members)
        unique = {key: tensor for key, tensor in members.items() if key not in aliases}
        files[name] = write_synced(folder / name, tensor_file.encode(unique))
        if aliases:
            tied[group] = aliases
    finish_files(folder, step, files, state, tied=tied)


def finish_files(
    folder: Path,
    step: int,
    files: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    tied: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Write state.json and the manifest of `files`, name -> what `write_synced` returned."""
    files = {**files, STATE: write_synced(folder / STATE, [manifest.json_bytes(dict(state))])}
    write_synced(folder / MANIFEST, [manifest.encode(step, files, tied, parts or {})])


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and sync one new file; returns its entry in the manifest."""
    digest, size = hashlib.blake2b(digest_size=32), 0
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _undo(path: Path, tmp: Path, old: Path) -> None:
    """Take back an unfinished save as far as the system lets us; the next save does the rest."""
    try:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        _remove(tmp)
    except OSError:
        return


def _clear_leftovers(folder: Path) -> None:
    for name in _names(folder):
        if name.startswith((_TMP, _GONE)):
            _remove(folder / name)
        elif name.startswith(_OLD):
            path = folder / name.removeprefix(_OLD)
            if os.path.lexists(path):
                _remove(folder / name)
            else:
                os.rename(folder / name, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prune(folder: Path, keep: Collection[int]) -> list[int]:
    """Delete the checkpoints of all steps but `keep`; returns the steps that went.

    A checkpoint is renamed before it is deleted, so that a half-deleted one is never found.

    Raises:
        CheckpointError: the system refused.
    """
    removed = [step for step in steps(folder) if step not in keep]
    for step in removed:
        path = step_path(folder, step)
        gone = folder / f"{_GONE}step-{step:06d}"
        try:
            _remove(gone)
            os.rename(path, gone)
            _remove(gone)
        except OSError as error:
            raise CheckpointError(f"{path} could not be deleted: {error.strerror}.") from None
    return removed


# --- loading ----------------------------------------------------------------------------------


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint, after verifying every byte of it.

    Raises:
        CheckpointError: it is missing, unfinished, truncated, altered or of another format; names
            the file at fault and the newest good checkpoint beside it.
    """
    try:
        found = _load(path)
    except DamagedError as reason:
        raise CheckpointError(f"{path}: {reason}. {_way_out(path.parent)}") from None
    if torch.device(device).type == "cpu":
        return found
    moved = {
        group: {name: tensor.to(device) for name, tensor in members.items()}
        for group, members in found.tensors.items()
    }
    return found._replace(tensors=moved)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a saved `state_dict` into `module`, exactly.

    Raises:
        CheckpointError: names, shapes or dtypes differ; nothing is changed then.
    """
    copy_exactly(module.state_dict(), tensors, "the model")


def load_evaluated(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights that were evaluated: the average of the parameters, if the run keeps one.

    Raises:
        CheckpointError: names, shapes or dtypes differ.
    """
    load_module(module, checkpoint.tensors["model"])
    if "ema" in checkpoint.tensors:
        averaged = checkpoint.tensors["ema"]
        copy_exactly(dict(module.named_parameters()), averaged, "the averaged weights")


def newest_good(folder: Path) -> Path | None:
    """The checkpoint with the most steps of those that pass every check."""
    for step in reversed(steps(folder)):
        path = step_path(folder, step)
        try:
            _load(path)
        except DamagedError:
            continue
        return path
    return None


def _way_out(folder: Path) -> str:
    try:
        good = newest_good(folder)
    except CheckpointError as error:
        return str(error)
    if good is None:
        return f"There is no good checkpoint in {folder}: restore one from a copy, or train anew."
    return f"The newest good checkpoint is {good}."


def _load(path: Path) -> Checkpoint:
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise DamagedError("expected a folder, and not a link to one")
        present = set(os.listdir(path))
    except OSError as error:
        raise DamagedError(f"cannot be opened ({error.strerror})") from None
    if MANIFEST not in present:
        raise DamagedError(f"{MANIFEST} is missing")
    stated = manifest.decode(_read(path / MANIFEST))
    expected = {MANIFEST, *stated["files"]}
    for name in sorted(expected ^ present):
        is_extra = name in present
        raise DamagedError(f"{name} {'does not belong here' if is_extra else 'is missing'}")
    match = _STEP_NAME.fullmatch(path.name.removeprefix(_OLD))
    if match and int(match[1]) != stated["step"]:
        raise DamagedError(f"{MANIFEST} says step {stated['step']}")

    tensors: dict[str, dict[str, Tensor]] = {}
    in_parts = Parts(stated["parts"])
    state: dict[str, Any] = {}
    for name, entry in stated["files"].items():
        data = _read(path / name, entry["bytes"])
        if manifest.digest(data) != entry["blake2b"]:
            raise DamagedError(f"{name} was altered")
        if name == STATE:
            state = manifest.parse(name, data)
        elif in_parts.has(name):
            in_parts.add(name, _tensors(name, data, {}))
        else:
            group = name.removesuffix(".safetensors")
            aliases = stated["tied"].get(group, {})
            tensors[group] = _tensors(name, data, aliases)
    return Checkpoint(path, stated["step"], tensors | in_parts.joined(), state)


def _read(path: Path, n_bytes: int | None = None) -> bytes:
    """The whole of a plain file, which must have `n_bytes` if they are given."""
    try:
        # Neither through a link nor into a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise DamagedError(f"{path.name} is not a plain file")
            if n_bytes is not None and info.st_size != n_bytes:
                raise DamagedError(f"{path.name} has {info.st_size} of {n_bytes} bytes")
            if path.suffix == ".json" and info.st_size > _MAX_JSON_BYTES:
                raise DamagedError(f"{path.name} is too large to be ours ({info.st_size} bytes)")
            return file.read()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from None


def _tensors(name: str, data: bytes, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        members = tensor_file.decode(data)
    except ValueError as error:
        raise DamagedError(f"{name} is not a safetensors file ({error})") from None
    for alias, original in aliases.items():
        if original not in members or alias in members:
            raise DamagedError(f"{MANIFEST} ties {alias!r} to {original!r}, not so {name}")
    return members | {alias: members[original] for alias, original in aliases.items()}


# --- the best one -----------------------------------------------------------------------------


def write_best(folder: Path, step: int, loss_nats: float) -> None:
    """Point at the best checkpoint, in one atomic replacement.

    Raises:
        CheckpointError: the system refused; the earlier pointer is as it was.
    """
    path, tmp = folder / _BEST, folder / f"{_TMP}{_BEST}"
    try:
        tmp.unlink(missing_ok=True)
        write_synced(tmp, [manifest.json_bytes({"step": step, "loss_nats": loss_nats})])
        os.replace(tmp, path)
        _sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror}.") from None


_WITHOUT_BEST = "Restore it from a copy, or delete it: then the last checkpoint is taken."


def read_best(folder: Path) -> Best | None:
    """The pointer to the best checkpoint; None if there is none yet.

    Raises:
        CheckpointError: best.json is damaged.
    """
    path = folder / _BEST
    if not os.path.lexists(path):
        return None
    try:
        document = manifest.parse(_BEST, _read(path))
    except DamagedError as reason:
        raise CheckpointError(f"{path}: {reason}. {_WITHOUT_BEST}") from None
    step, loss = document.get("step"), document.get("loss_nats")
    if not manifest.is_count(step) or not isinstance(loss, int | float) or isinstance(loss, bool):
        raise CheckpointError(f"{path} does not hold a step and a loss. {_WITHOUT_BEST}")
    return Best(step, float(loss))
