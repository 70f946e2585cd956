"""Precision rules shared by all ops."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32 and leave float32 and float64 alone.

    `.float()` would narrow a float64 test, so ops and layers use this instead.
    """
    return x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x


def autocast_once(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast would give it, for several projections of the same input.

    Each of them would cast it anew, forward and backward. Without autocast, `x` itself.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
