"""Workers as processes of this machine: one per GPU, or one per so many cores."""

import os
import subprocess
from pathlib import Path

from mixlab.core.provenance import n_usable_cores
from mixlab.studies.executors.base import log_path, tail, worker_command
from mixlab.studies.runner import RunnerConfig


class LocalExecutor:
    """Starts each worker in a session of its own, so that Ctrl-C reaches the driver alone."""

    def __init__(self, folder: Path, runner: RunnerConfig, *, n_gpus: int, threads: int) -> None:
        self._folder, self._runner = folder, runner
        self._n_gpus, self._threads = n_gpus, threads
        self.n_workers = runner.workers or n_gpus or max(1, (n_usable_cores() or 1) // threads)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, slot: int) -> None:
        options = ["--parent", str(os.getpid())]
        environment = {**os.environ}
        if self._n_gpus:
            visible = environment.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self._n_gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        else:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        log = log_path(self._folder, slot)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._processes[slot] = subprocess.Popen(
                worker_command(self._folder, self._runner, slot, *options),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    def poll(self) -> dict[int, int | None]:
        return {slot: process.poll() for slot, process in self._processes.items()}

    def stop(self, *, at_once: bool = False) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill() if at_once else process.terminate()

    def last_words(self, slot: int) -> str:
        return tail(log_path(self._folder, slot))
