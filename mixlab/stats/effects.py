"""A difference in the three units in which people read it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """An arm against the baseline. A negative number of nats and a positive reduction are better.

    `reduction_percent` is the share of the baseline's loss that is gone, (baseline - arm) /
    baseline. Its inverse, baseline / arm - 1, is a larger number for the same runs and is not used.
    """

    nats: float  # arm - baseline, per token
    bits_per_byte: float | None  # arm - baseline, if the bytes behind a token are known
    reduction_percent: float | None  # None for a baseline of 0


def effect(baseline_nats: float, arm_nats: float, bytes_per_token: float | None = None) -> Effect:
    """The effect of `arm_nats` against `baseline_nats`, both losses in nats per token.

    `bytes_per_token` is the mean number of bytes of text behind a target of the validation set.
    """
    nats = arm_nats - baseline_nats
    return Effect(
        nats=nats,
        bits_per_byte=nats / math.log(2) / bytes_per_token if bytes_per_token else None,
        reduction_percent=-100 * nats / baseline_nats if baseline_nats else None,
    )
