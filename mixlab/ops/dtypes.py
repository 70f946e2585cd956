"""Precision rules shared by all ops."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32 and leave float32 and float64 alone.

    `.float()` would narrow a float64 test, so ops and layers use this instead.
    """
    return x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x
