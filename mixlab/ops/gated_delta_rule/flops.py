"""What PyTorch's counter of FLOPs says of the rule's operators: the definition's products.

Kernels in matrix form spend more, to be faster; work that is not the model's is not counted, as in
`GatedDeltaNetConfig.flops_per_token`.
"""

import torch
from torch.utils.flop_counter import register_flop_formula


def count_flops(name: str) -> None:
    """Let the counter know mixlab::delta_rule_NAME and its backward operator."""
    register_flop_formula(getattr(torch.ops.mixlab, f"delta_rule_{name}"))(_forward)
    register_flop_formula(getattr(torch.ops.mixlab, f"delta_rule_{name}_backward"))(_backward)


def _forward(q: torch.Size, k: torch.Size, v: torch.Size, *args, **kwargs) -> int:
    """Recall, write and read, K * V each, for every token and head; a multiply-add counts 2."""
    return 6 * v.numel() * k[-1]


def _backward(q: torch.Size, k: torch.Size, v: torch.Size, *args, **kwargs) -> int:
    return 2 * _forward(q, k, v)
