"""A contender's process, from the side of `gpu_training.py`."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_workloads import Contender, Workload

WORKER = Path(__file__).with_name("training_worker.py")


class ContenderError(Exception):
    """A contender that cannot take part (any more), with the reason in one line."""


class Process:
    """A worker that was started, and imports its packages until it is asked something."""

    def __init__(
        self,
        workload: Workload,
        contender: Contender,
        *,
        tiny: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, str(WORKER), workload.key, contender.key]
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (ends with it)
        self._process = subprocess.Popen(
            command + (["--tiny"] if tiny else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, command: str, limit_s: float) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            ContenderError: it said that it failed, died, or did not answer in time.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(command, file=self._process.stdin, flush=True)
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self.end()
            raise ContenderError(
                f"no answer to '{command.split()[0]}' within {limit_s:.0f} s"
            ) from None
        if line is None:
            raise ContenderError(f"ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"].splitlines()[0][:300])
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1][:300] if lines else "nothing was said"

    def end(self) -> None:
        """Stop it, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
