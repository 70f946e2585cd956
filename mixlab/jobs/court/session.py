"""Holding the court at the start of a run, or recalling what it decided."""

import hashlib
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import torch

from mixlab import ops
from mixlab.core.cache import cache_dir
from mixlab.core.errors import BackendError, RunError
from mixlab.core.json_files import read_json, write_json
from mixlab.core.run_dir import RunDir
from mixlab.jobs.config import AnyRunConfig
from mixlab.jobs.court.cases import cases_of
from mixlab.jobs.court.trial import Case, try_candidates
from mixlab.jobs.court.verdicts import Verdict, Verdicts
from mixlab.jobs.device import Hardware
from mixlab.jobs.screen import Screen

VERDICTS_FILE = "kernels.json"
TRIAL_SECONDS = 60.0
"""After this long, nothing more is tried where something has agreed already."""
_PACKAGES = ("torch", "triton", "flash-linear-attention", "fla-core", "flash-qla", "tilelang")


def kernels_of_run(
    run: RunDir, config: AnyRunConfig, hardware: Hardware, screen: Screen
) -> Verdicts:
    """The verdicts that the run began with, or new ones, which are written into its folder.

    Raises:
        BackendError: the run began with a backend that cannot run here any more.
        RunError: the file of the verdicts is damaged.
    """
    path = run.path / VERDICTS_FILE
    kept = hardware.world.tell(read_json(path) if hardware.world.is_first else None)
    if kept is not None:
        verdicts = Verdicts.read(kept, str(path))
        _require_presence(run, verdicts, cases_of(config, hardware))
        return verdicts
    verdicts = hold_court(config, hardware, screen)
    if verdicts and hardware.world.is_first:
        run.write_json(VERDICTS_FILE, verdicts.document())
    return verdicts


def hold_court(config: AnyRunConfig, hardware: Hardware, screen: Screen) -> Verdicts:
    """Verdicts on every op that the config leaves open; none on a CPU, which has one backend each.

    Of several ranks the first one tries, and all abide by what it finds.
    """
    cases = cases_of(config, hardware)
    if not cases:
        return Verdicts()
    document = None
    if hardware.world.is_first:
        document = Verdicts(_verdicts(cases, hardware.device, screen)).document()
    return Verdicts.read(hardware.world.tell(document), "the first rank's answer")


def _verdicts(cases: list[Case], device: torch.device, screen: Screen) -> list[Verdict]:
    paths = [_cache_path(case, device) for case in cases]
    found = [_cached(path) for path in paths]
    if all(found):
        return [verdict for verdict in found if verdict is not None]
    deadline = time.monotonic() + TRIAL_SECONDS
    with screen.task("Trying the kernels on this run's shapes", len(cases)) as advance:
        for i, (case, path) in enumerate(zip(cases, paths, strict=True)):
            if found[i] is None:
                found[i] = _tried_once(
                    case, path, device, is_late=lambda: time.monotonic() > deadline
                )
            advance(1)
    return [verdict for verdict in found if verdict is not None]


def _tried_once(
    case: Case, path: Path, device: torch.device, is_late: Callable[[], bool]
) -> Verdict:
    """A trial, or the verdict of another process that holds the same one just now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        verdict = _cached(path)
        if verdict is None:
            verdict = try_candidates(case, device, is_late=is_late)
            write_json(path, Verdicts([verdict]).document())
    return verdict


def _require_presence(run: RunDir, verdicts: Verdicts, cases: list[Case]) -> None:
    usable = {(case.op, str(dict(case.dims))): case.candidates for case in cases}
    for verdict in verdicts:
        able = usable.get((verdict.op, str(verdict.dims)), ())
        if verdict.chosen is not None and verdict.chosen not in able:
            raise BackendError(
                f"run {run.path}: began with backend {verdict.chosen!r} of {verdict.op}, which "
                f"cannot run here (what can: {', '.join(able) or 'plain PyTorch'}). Install what "
                "it needs, as environment.json has it, or delete "
                f"{run.path / VERDICTS_FILE} to choose anew: the run then goes on to rounding, "
                "not to the bit."
            )


# --- the cache ------------------------------------------------------------------------------------


def _cached(path: Path) -> Verdict | None:
    """What an earlier trial found; a file that cannot be read is tried anew."""
    try:
        document = read_json(path)
        return None if document is None else Verdicts.read(document, str(path))[0]
    except (RunError, IndexError):
        return None


def _cache_path(case: Case, device: torch.device) -> Path:
    """By all that a verdict depends on: shape, dtype, device, versions, and our own sources."""
    key = {
        "op": case.op,
        "dims": dict(case.dims),
        "dtype": str(case.dtype),
        "size": [case.n_rows, case.n_tokens],
        "candidates": [list(case.candidates), list(case.slow)],
        "device": _device_name(device),
        "versions": _versions(),
        "sources": _sources(),
    }
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    return cache_dir() / "kernels" / f"{case.op}-{digest}.json"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, Any]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _sources() -> str:
    """A hash of the code of all ops."""
    digest = hashlib.blake2b(digest_size=12)
    for folder in ops.__path__:
        for file in sorted(Path(folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
