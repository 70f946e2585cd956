"""Workers as tasks of a Ray cluster: each task starts the worker command on a node of its own.

The study folder must lie where all nodes see it.
"""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.studies.executors.base import log_path, tail, worker_command
from mixlab.studies.runner import RunnerConfig


def _run_command(command: list[str], log: str, threads: int | None) -> int:
    """What the task does on its node: run the worker until it ends, and report how."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())], stdout=file, stderr=file, env=environment
        )
    try:
        return process.wait()
    except BaseException:  # the task was cancelled
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


class RayExecutor:
    """Tasks of a running cluster, or of one that is started here for the study.

    `runner.ray` holds `address` (absent: $RAY_ADDRESS, else a cluster of this machine) and the
    resources of one worker: `num_cpus`, `num_gpus`, `resources`.
    """

    def __init__(self, folder: Path, runner: RunnerConfig) -> None:
        try:
            import ray
        except ImportError:
            raise MissingPackageError("ray", "The executor ray", "ray") from None
        self._ray, self._folder, self._runner = ray, folder, runner
        needs = dict(runner.ray)
        start = {key: needs.pop(key) for key in ("address", "namespace") if key in needs}
        needs.setdefault("num_cpus", runner.threads or 1)
        try:
            if not ray.is_initialized():
                ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False,
                         **start)  # fmt: skip
            # A worker that dies is started anew by the driver, which knows whether it is wanted.
            self._task = ray.remote(max_retries=0, **needs)(_run_command)
        except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
            raise LabError(
                f"runner.ray = {runner.ray!r}: Ray cannot be used: {str(error).splitlines()[0]}"
            ) from None
        room = [
            int(ray.cluster_resources().get(name, 0) / needs[key])
            for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
            if needs.get(key)
        ]
        self.n_workers = runner.workers or max(1, min(room, default=1))
        self._tasks: dict[int, Any] = {}

    def start(self, slot: int) -> None:
        command = worker_command(self._folder, self._runner, slot)
        log = str(log_path(self._folder.absolute(), slot))
        self._tasks[slot] = self._task.remote(command, log, self._runner.threads)

    def poll(self) -> dict[int, int | None]:
        found: dict[int, int | None] = {}
        for slot, task in self._tasks.items():
            ready, _ = self._ray.wait([task], timeout=0)
            if not ready:
                found[slot] = None
                continue
            try:
                found[slot] = self._ray.get(task)
            except self._ray.exceptions.RayError:  # its node is gone, or it was cancelled
                found[slot] = 1
        return found

    def stop(self, *, at_once: bool = False) -> None:
        for slot, status in self.poll().items():
            if status is None:
                self._ray.cancel(self._tasks[slot], force=at_once)

    def last_words(self, slot: int) -> str:
        return tail(log_path(self._folder, slot))
