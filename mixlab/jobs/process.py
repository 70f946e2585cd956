"""Settings of the process that must be in place before PyTorch is imported.

Each is a default: whoever has set the variable keeps the setting.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

_THREAD_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def tune_process() -> None:
    """Make waiting threads sleep and let freed memory be used again.

    OpenMP threads that spin while they wait take the core from the thread they wait for: on a
    busy 2-core machine that costs a multiple of the work itself. glibc returns large blocks to
    the kernel at every free, and a training step then spends its time on page faults.
    Does nothing once PyTorch is loaded, when it would come too late.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _THREAD_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said, so that it does not warn
    if sys.platform.startswith("linux") and not any(k.startswith("MALLOC_") for k in os.environ):
        _keep_freed_memory()


def command_age_s() -> float | None:
    """Seconds since this process was started, if it was as a `mixlab` command; else None.

    None for the worker of a study too: it makes several runs, which did not begin with it.
    """
    if "mixlab.cli.main" not in sys.modules or not sys.platform.startswith("linux"):
        return None
    if sys.argv[1:3] == ["study", "worker"]:
        return None
    # Field 22 of proc(5)'s stat, counted after the name, which may hold anything.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def _keep_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: its defaults stay
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
