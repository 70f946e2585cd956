"""Workers as Slurm jobs, through submitit; with its local executor, the same on one machine."""

from pathlib import Path
from typing import Any

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.studies.executors.base import tail, worker_command
from mixlab.studies.runner import RunnerConfig

_DEFAULTS = {"timeout_min": 24 * 60, "name": "mixlab"}


class SlurmExecutor:
    """One Slurm job per worker. A job that is preempted or times out is submitted again.

    `runner.slurm` goes to submitit's `update_parameters`; its key `cluster` chooses "slurm",
    "local" or "debug", and without it submitit looks for Slurm.
    """

    def __init__(self, folder: Path, runner: RunnerConfig) -> None:
        try:
            import submitit
        except ImportError:
            raise MissingPackageError("submitit", "The executor slurm", "slurm") from None
        self._submitit, self._folder, self._runner = submitit, folder, runner
        parameters = {**_DEFAULTS, **runner.slurm}
        cluster = parameters.pop("cluster", None)
        try:
            logs = folder / "workers" / "slurm"
            self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
            self._executor.update_parameters(**parameters)
        # submitit asserts the types of its parameters.
        except (RuntimeError, TypeError, NameError, ValueError, AssertionError) as error:
            why = " ".join(str(error).split())
            raise LabError(
                f"runner.slurm = {runner.slurm!r}: submitit refuses it: {why} See its "
                "documentation of AutoExecutor.update_parameters, or use the executor local."
            ) from None
        self.n_workers = runner.workers or 1
        self._jobs: dict[int, Any] = {}

    def start(self, slot: int) -> None:
        command = worker_command(self._folder, self._runner, slot)
        function = self._submitit.helpers.CommandFunction(command, verbose=False)
        self._jobs[slot] = self._executor.submit(function)

    def poll(self) -> dict[int, int | None]:
        found: dict[int, int | None] = {}
        for slot, job in self._jobs.items():
            if not job.done():
                found[slot] = None
                continue
            error = job.exception()
            found[slot] = 0 if error is None else _status(error)
        return found

    def stop(self, *, at_once: bool = False) -> None:
        for job in self._jobs.values():
            if not job.done():
                job.cancel()

    def last_words(self, slot: int) -> str:
        job = self._jobs.get(slot)
        return "" if job is None else tail(Path(job.paths.stderr))


def _status(error: BaseException) -> int:
    """The exit status of the worker command, where submitit kept it."""
    for cause in (error, error.__cause__):
        status = getattr(cause, "returncode", None)
        if isinstance(status, int):
            return status
    return 1
