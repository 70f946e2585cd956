"""What lies in a study folder besides the jobs, and how people find their way to the runs."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixlab.core.config import dump_yaml
from mixlab.core.errors import LabError
from mixlab.core.json_files import write_bytes_atomically, write_json

STUDIES = Path("studies")


def study_folder(name: str, *, is_smoke: bool, folder: Path | None = None) -> Path:
    """Where a study of this name lies unless a folder is given."""
    return folder or STUDIES / (f"{name}-smoke" if is_smoke else name)


def find_folder(name_or_folder: str, *, is_smoke: bool = False) -> Path:
    """The folder of a study that has been started, by its name or its path.

    Raises:
        LabError: there is none.
    """
    given = Path(name_or_folder)
    named = study_folder(given.stem if given.suffix in (".yaml", ".yml") else given.name,
                         is_smoke=is_smoke)  # fmt: skip
    for path in (given, named):
        if (path / "study.json").is_file():
            return path
    beside = sorted(p.parent.name for p in STUDIES.glob("*/study.json")) if STUDIES.is_dir() else []
    known = f" The studies here are {', '.join(beside)}." if beside else ""
    raise LabError(
        f"study = {name_or_folder!r}: has not been started here: there is no {named}. Start it "
        f"with `mixlab study run {name_or_folder}`.{known}"
    )


def write_design(folder: Path, design: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Write study.json and study.yaml; only the driver that holds the lease may."""
    write_bytes_atomically(folder / "study.yaml", dump_yaml(dict(asked)).encode())
    write_json(folder / "study.json", design)


def link_runs(folder: Path, results: Mapping[str, Any]) -> None:
    """Make arms/NAME/seed-1 and the like lead to the runs; a help for people, nothing more."""
    wanted: dict[Path, str] = {}
    for arm in results["arms"]:
        place = folder / "arms" / arm["name"]
        for seed, address in arm["jobs"].items():
            run = results["jobs"][address].get("run")
            if run is not None:
                wanted[place / f"seed-{seed}"] = run
        for point in (arm["tuning"] or {}).get("points", []):
            for address in point["jobs"]:
                job = results["jobs"].get(address, {})
                if job.get("run") is not None:
                    wanted[place / f"rate-{point['lr']:g}-seed-{job['seed']}"] = job["run"]
    with suppress(OSError):  # a file system without links
        for link in (folder / "arms").glob("*/*"):
            if link.is_symlink() and link not in wanted:
                link.unlink()
        for link, run in wanted.items():
            target = os.path.join("..", "..", run)
            if link.is_symlink() and os.readlink(link) == target:
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
