"""Command lines as processes, forked from one that has torch loaded already.

Starting Python with torch takes seconds; a fork takes milliseconds. What runs in the child is the
console script's own `main`, or a script's, with its own signals, streams and exit status.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SERVER = """
import json, os, resource, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
from spared import spare
sys.path.pop(0)
import matplotlib
matplotlib.use("Agg")
import matplotlib.figure, matplotlib.pyplot
figure = matplotlib.pyplot.figure()
figure.text(0.5, 0.5, "fonts are loaded at the first drawing")
figure.canvas.draw()
import torch
import torch._dynamo  # which torch loads when the first optimizer is built
torch.set_num_threads(1)  # forked children have no thread pool
import mixlab.jobs.extend, mixlab.jobs.trained, mixlab.jobs.show, mixlab.jobs.catalogue
import mixlab.jobs.refine.session
import mixlab.cli.main, mixlab.cli.screen

CALLS = ("fsync", "rename", "replace", "rmdir", "unlink", "mkdir")

def die_at(n):
    left = [n]
    def wrap(original):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        return call
    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))

def child(request):
    os.chdir(request["cwd"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["terminal"]:
        os.setsid()  # the terminal that is opened next is the controlling one
        terminal = os.open(request["terminal"], os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(terminal, number)
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
    # A shell may start background jobs with SIGINT ignored; a person's terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["env"])
    sys.argv = [request["script"] or "mixlab", *request["argv"]]
    if not request["whole"]:
        spare()
    if request["die_at"]:
        die_at(request["die_at"])
    if request["file_bytes"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], limits[1]))
    try:
        if request["script"]:
            runpy.run_path(request["script"], run_name="__main__")
        else:
            mixlab.cli.main.main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        answer = os.waitstatus_to_exitcode(status)
    else:
        answer = os.fork()
        if answer == 0:
            child(request)
    print(json.dumps(answer), flush=True)
"""


class Result(NamedTuple):
    """How a command ended."""

    code: int  # exit status, or minus the signal that killed it
    stdout: str
    stderr: str


class Command:
    """A command that may still be running."""

    def __init__(self, server: "ForkServer", pid: int, stdout: Path, stderr: Path) -> None:
        self._server, self.pid = server, pid
        self._stdout, self._stderr = stdout, stderr

    def send(self, number: int) -> None:
        """Send a signal; until `wait` has been called the process number cannot be reused."""
        os.kill(self.pid, number)

    def send_when(self, number: int, condition: Callable[[], bool], limit_s: float = 60) -> None:
        """Send a signal as soon as `condition` holds."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened: {self._stderr.read_text()}"
            time.sleep(0.001)
        self.send(number)

    def wait(self) -> Result:
        code = self._server.ask({"wait": self.pid})
        return Result(code, self._stdout.read_text(), self._stderr.read_text())


class ForkServer:
    """The process that forks."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._n = folder, 0
        own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "100"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **own},
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has died"
        return json.loads(line)

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def start(
        self,
        argv: Sequence[object],
        *,
        cwd: Path,
        die_at: int | None = None,
        file_bytes: int | None = None,
        whole: bool = False,
        script: str | None = None,
        terminal: str | None = None,
        **env: str,
    ) -> Command:
        """Start `mixlab ARGV...`, without what `spared` names unless it is to be `whole`.

        With `die_at` it kills itself at that file operation; with `file_bytes` the system lets no
        file grow beyond that. `script` is a file of Python to run instead; `terminal` is a device
        that takes the place of all three streams, and sends it signals.
        """
        self._n += 1
        stdout, stderr = (self._folder / f"{self._n}.{name}" for name in ("out", "err"))
        pid = self.ask(
            {
                "argv": [str(word) for word in argv],
                "cwd": str(cwd),
                "env": env,
                "stdout": str(stdout),
                "stderr": str(stderr),
                "die_at": die_at,
                "file_bytes": file_bytes,
                "whole": whole,
                "script": script,
                "terminal": terminal,
            }
        )
        return Command(self, pid, stdout, stderr)

    def run(
        self,
        argv: Sequence[object],
        *,
        cwd: Path,
        whole: bool = False,
        script: str | None = None,
        **env: str,
    ) -> Result:
        """Run `mixlab ARGV...`, or a script, to its end."""
        return self.start(argv, cwd=cwd, whole=whole, script=script, **env).wait()

    def close(self) -> None:
        self._process.kill()  # it holds nothing worth a clean-up, which takes a second
        self._process.wait()
