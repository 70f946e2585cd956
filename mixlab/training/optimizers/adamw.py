"""AdamW through torch's fused kernel, which runs on CPU and on CUDA.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101. The decay
per update is the learning rate times `weight_decay`, as in torch.
"""

from collections.abc import Iterable
from itertools import product
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixlab.parallel.shards import is_sharded
from mixlab.training.optimizers.base import Optimizer, OptimizerConfig
from mixlab.training.optimizers.groups import NamedParameter, decays, trainable

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(OptimizerConfig):
    """AdamW for all parameters; matrices decay, the rest does not."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of the matrices, per unit of learning rate."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> "AdamW":
        return AdamW(self, trainable(named_parameters))


class AdamW(Optimizer):
    """See `AdamWConfig`. State: two float32 means and a count of updates per parameter."""

    def __init__(self, cfg: AdamWConfig, params: list[NamedParameter]) -> None:
        super().__init__(p for _, p in params)
        self._lr = cfg.lr
        self._names = [name for name, _ in params]
        groups = []
        # One kernel takes whole tensors only, or only such as ranks have parts of.
        for decay, is_part in product((True, False), repeat=2):
            members = [
                p
                for name, p in params
                if decays(name, p.shape) == decay and is_sharded(p) == is_part
            ]
            if members:
                rate = cfg.weight_decay if decay else 0.0
                groups.append({"params": members, "weight_decay": rate})
        self._inner = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)
        # torch makes the state at the first update. Made here, in the same form, it can be saved
        # and restored at any time, and a restored tensor is never an alias of the checkpoint's.
        for _, p in params:
            self._inner.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }

    def step(self, lr_factor: float) -> None:
        for group in self._inner.param_groups:
            group["lr"] = self._lr * lr_factor
        self._inner.step()

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            f"adamw/{quantity}/{name}": tensor
            for name, p in zip(self._names, self._parameters, strict=True)
            for quantity, tensor in self._inner.state[p].items()
        }
