"""Compiling the kernels on first use, and loading them.

A library is kept in the cache folder under a name made of the sources, the command, the compiler's
version and the processor, so that nothing stale and nothing of another machine is ever loaded.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from mixlab.core.cache import cache_dir
from mixlab.core.errors import BackendError

SOURCES = Path(__file__).parent / "sources"
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = (
    "-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "-fno-strict-aliasing", "-shared", "-fPIC",
)  # fmt: skip
LONGEST_S = 300
"""Seconds after which a compiler is given up."""
NAMES = {torch.float32: "float", torch.float64: "double"}
"""Types of numbers that there are kernels for."""


@functools.cache
def obstacle(dtype: torch.dtype = torch.float32) -> str | None:
    """Why there are no kernels for such numbers here; None where there are."""
    try:
        load(dtype)
    except BackendError as error:
        return str(error)
    return None


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels for numbers of this type.

    Raises:
        BackendError: they cannot be compiled or loaded here, or do not work.
    """
    if dtype not in NAMES:
        name = str(dtype).removeprefix("torch.")
        raise BackendError(f"the weights are {name}, and there are kernels for float32 only")
    if os.name != "posix":
        raise BackendError(f"they are compiled on Linux and macOS only, and this is {os.name}")
    command = [_compiler(), *OPTIONS, _native(), f"-DREAL={NAMES[dtype]}"]
    name = f"few-rows-{NAMES[dtype]}-{_key(command)}.so"
    for folder in _folders():
        try:
            library = _loaded(command, folder / name)
        except OSError as error:  # a folder that cannot be written, or from which nothing may run
            problem = f"they cannot be kept in {folder}: {error}"
            continue
        _check(library, dtype)
        return library
    raise BackendError(problem)


def _compiler() -> str:
    """Of those that are installed, the first C++ compiler."""
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise BackendError(f"they need a C++ compiler, such as {COMPILERS[1]}, and there is none")


def _native() -> str:
    """The option for all instructions of this processor."""
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _key(command: list[str]) -> str:
    """What a library is made of and for, in 16 digits."""
    parts = [shlex.join(command), _output([command[0], "--version"]), platform.machine(), _cpu()]
    parts += [path.name + path.read_text() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """The processor's model and instructions, as far as they are told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def _folders() -> Iterator[Path]:
    """Where libraries are kept: the user's own folder in the cache, or one for this process.

    Nobody else may write there, as code is loaded from it.
    """
    user = os.getuid()
    folder = cache_dir() / "kernels" / str(user)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid == user and not status.st_mode & 0o022:
            yield folder
    except OSError:
        pass  # a cache that cannot be written
    with tempfile.TemporaryDirectory(prefix="mixlab-kernels-") as own:
        yield Path(own)


def _loaded(command: list[str], path: Path) -> ctypes.CDLL:
    """The library at a path, which is compiled where there is none, or a damaged one."""
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink(missing_ok=True)
    _compile(command, path)
    return ctypes.CDLL(str(path))


def _compile(command: list[str], path: Path) -> None:
    """By way of another name, so that no process ever loads half a library."""
    handle, partial = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        _output([*command, str(SOURCES / "all.cpp"), "-o", partial])
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _output(command: list[str]) -> str:
    """What a compiler prints."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LONGEST_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise BackendError(f"{command[0]} does not compile them: {told[0].strip()[:300]}")
    return done.stdout


def _check(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    """A compiler's mistake is no answer: one small product in whole numbers must be exact."""
    from mixlab.ops.few_rows.kernels import ProductKernel

    weight = torch.arange(70 * 5, dtype=dtype).remainder_(7).view(70, 5)
    x = torch.arange(9 * 5, dtype=dtype).remainder_(5).view(9, 5)
    found = ProductKernel(weight, None, library=library)(x)
    if not torch.equal(found, (x[:, None] * weight).sum(-1)):
        raise BackendError("they were compiled, and give wrong numbers on this processor")
