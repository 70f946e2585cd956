"""Where workers run: one interface, and one command that all of them start."""

from pathlib import Path

from mixlab.studies.executors.base import Executor
from mixlab.studies.runner import RunnerConfig

__all__ = ["Executor", "open_executor"]


def open_executor(runner: RunnerConfig, folder: Path, *, n_gpus: int, threads: int) -> Executor:
    """The executor that the study asks for.

    Raises:
        MissingPackageError: it needs a package that is not installed.
        LabError: the cluster cannot be reached.
    """
    if runner.executor == "slurm":
        from mixlab.studies.executors.slurm import SlurmExecutor

        return SlurmExecutor(folder, runner)
    if runner.executor == "ray":
        from mixlab.studies.executors.ray import RayExecutor

        return RayExecutor(folder, runner)
    from mixlab.studies.executors.local import LocalExecutor

    return LocalExecutor(folder, runner, n_gpus=n_gpus, threads=threads)
