"""Where the runs of a study are made: the key `runner` of a study file."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.training.length import Length

RAY_KEYS = ("address", "namespace", "num_cpus", "num_gpus", "memory", "resources")


class RunnerConfig(Config):
    """Where the runs are made."""

    executor: Literal["local", "slurm", "ray"] = "local"
    """`local`: processes on this machine; `slurm`: jobs through submitit; `ray`: tasks of Ray."""
    workers: PositiveInt | None = None
    """Processes at once; absent: one per GPU, or per `threads` cores where there is no GPU."""
    threads: PositiveInt | None = None
    """Cores of one worker on a CPU; absent: the recipe's train.threads, else 1."""
    hang_after: Length = Length(1800, "seconds")
    """Time without a sign of life after which a worker's run is given to another one."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """Parameters of submitit's executor, such as {partition: gpu, timeout_min: 240}."""
    ray: dict[str, Any] = Field(default_factory=dict)
    """Resources of one Ray worker, such as {num_gpus: 1, num_cpus: 8, address: auto}."""

    @field_validator("hang_after")
    @classmethod
    def _is_a_time(cls, value: Length) -> Length:
        if value.unit != "seconds":
            raise Rule("", str(value), 'a time, such as "30 minutes"')
        return value

    @field_validator("ray")
    @classmethod
    def _are_keys_of_ray(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in RAY_KEYS:
                raise Rule(key, value[key], f"one of the keys {', '.join(RAY_KEYS)}")
        return value
