"""What the training loop needs to know of a run, from its config and its hardware."""

from mixlab.jobs.config import AnyRunConfig
from mixlab.jobs.device import Hardware, measure_matmul_flops
from mixlab.training.loop import Plan


def plan_training(
    config: AnyRunConfig,
    hardware: Hardware,
    n_steps: int,
    *,
    flops_per_token: float,
    tokens_per_example: int | None = None,
) -> Plan:
    """The plan of `n_steps` updates; takes a moment, in which the rate of the device is measured.

    `tokens_per_example` as in `Plan`.
    """
    rate = measure_matmul_flops(hardware.device, hardware.compute_dtype)
    return Plan(
        train=config.train,
        eval=config.eval,
        checkpoint=config.checkpoint,
        n_steps=n_steps,
        flops_per_token=flops_per_token,
        peak_flops=hardware.world.size * rate,
        decay_start=config.train.schedule.decay_start(n_steps),
        tokens_per_example=tokens_per_example,
    )
