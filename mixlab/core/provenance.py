"""Where a run came from: machine, versions, commit and command, written to environment.json.

Nothing here imports torch or asks a device; whoever has them passes what they know.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mixlab

_PACKAGES = (
    "mixlab",
    "torch",
    "triton",
    "numpy",
    "tokenizers",
    "safetensors",
    "pydantic",
    "datasets",
    "flash-linear-attention",
    "transformers",
)


def environment(command: str, accelerator: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        command: what the user typed; see `command_line`.
        accelerator: what torch knows, such as the device in use, threads and CUDA devices; kept
            as given under the same key.
    """
    return {
        "command": command,
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "working_folder": os.fspath(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "n_cores": os.cpu_count(),
            "n_usable_cores": n_usable_cores(),
        },
        "memory_bytes": memory_bytes(),
        "packages": package_versions(_PACKAGES),
        "git": checkout(Path(mixlab.__file__).parent),
        "accelerator": dict(accelerator or {}),
    }


def command_line(argv: Sequence[str]) -> str:
    """`sys.argv` as text that can be pasted into a shell."""
    program, *arguments = argv
    path = Path(program)
    if path.name == "__main__.py":
        # `python -m package` puts the package's file here; its dotted name starts at a folder
        # that is no package itself.
        parts = [path.parent.name]
        for folder in path.parent.parents:
            if not (folder / "__init__.py").exists():
                break
            parts.insert(0, folder.name)
        start = ["python", "-m", ".".join(parts)]
    elif path.suffix == ".py":
        start = ["python", program]
    else:
        start = [path.name.removesuffix(".exe")]
    return shlex.join([*start, *arguments])


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed, found without importing them."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def checkout(package: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the git checkout that `package` is run from.

    None where there is none: an installed wheel, also one inside another project's checkout.
    """
    root = _git(package, "rev-parse", "--show-toplevel")
    if not root or (Path(root) / package.name).resolve() != package.resolve():
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    if not commit:
        return None
    return {"commit": commit, "is_dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None when git is missing, slow or unhappy: a run must not depend on it."""
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """The processor's trade name where the system tells it, else its architecture."""
    if sys.platform == "darwin":
        try:
            return subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def n_usable_cores() -> int | None:
    """Cores that this process may run on, which a container or taskset can make fewer."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def free_memory_bytes() -> int | None:
    """Memory that programs can still take without swapping, where the system tells it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * found[0] if found else None


def memory_bytes() -> int | None:
    """Physical memory of the machine, where the system tells it."""
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
