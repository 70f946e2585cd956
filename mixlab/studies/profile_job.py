"""A few updates of a config, timed and counted: what sets the length of an arm in seconds."""

from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mixlab.core.config import to_tree
from mixlab.core.provenance import environment
from mixlab.jobs.config import AnyRunConfig, decode_config
from mixlab.jobs.device import describe, settle_hardware
from mixlab.jobs.kinds import kind_of
from mixlab.jobs.screen import Screen
from mixlab.studies.job_store import Job
from mixlab.studies.training_job import DataCache
from mixlab.training.length import Length

N_ROUNDS = 5
"""Times that the time of an update is measured; the median counts."""


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# PyTorch's counter does not know the fused attention of CPUs, only that of GPUs.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def profile_job(job: Job, screen: Screen, cache: DataCache) -> dict[str, Any]:
    """Seconds of one update, evaluations included, and its FLOPs as the profiler counts them.

    A job of kind `count` leaves the time out.
    """
    config = decode_config(job.config)
    data = cache.open(config, screen)
    hardware = settle_hardware(config.train)
    n_rounds = N_ROUNDS if job.kind == "profile" else 0
    times: list[float] = []
    with screen.task("Timing a few updates", n_rounds) as advance:
        for _ in range(n_rounds):
            times.append(kind_of(config).seconds_per_step(config, data, hardware))
            advance(1)
    return {
        "seconds_per_step": sorted(times)[n_rounds // 2] if times else None,
        "all_seconds_per_step": times,
        "flops_per_token_counted": counted_flops_per_token(config, data),
        "data": job.data,
        "environment": environment("mixlab study run", describe(hardware.device)),
    }


def counted_flops_per_token(config: AnyRunConfig, data: Any) -> float | None:
    """FLOPs of one update per target, counted operation by operation as they run.

    Fused attention counts the whole square of scores, and what its backward pass computes again;
    the formula counts the causal half, as is customary.

    None where a kernel runs that the counter does not know, so that its count would be too low.
    """
    hardware = settle_hardware(config.train)
    if hardware.device.type == "cuda":
        return None  # fused kernels of the recurrences are not counted
    one = decode_config(
        {**to_tree(config), "train": {**to_tree(config.train), "length": "1 steps"}}
    )
    with torch.random.fork_rng(hardware.gpus):
        session = kind_of(config).open_session(one, data, hardware)
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            metrics = session.objective.accumulate(0)
    return counter.get_total_flops() / metrics.n_targets


def quick_seconds_per_step(config: AnyRunConfig, data: Any) -> float:
    """One look at the time of an update, for a plan that is only an estimate."""
    timed = config.model_copy(
        update={"train": config.train.model_copy(update={"length": Length(1, "steps")})}
    )
    return kind_of(config).seconds_per_step(timed, data, settle_hardware(config.train))
