"""AdamW through torch's fused kernel, which runs on CPU and on CUDA, or through one of our own.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101. The decay
per update is the learning rate times `weight_decay`, as in torch.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixlab.core.errors import BackendError
from mixlab.parallel.shards import is_sharded
from mixlab.training.optimizers.base import Optimizer, OptimizerConfig, scale_gradients
from mixlab.training.optimizers.groups import NamedParameter, decays, trainable

if TYPE_CHECKING:
    from mixlab.training.optimizers.adamw_kernel import ManyTensors

Backend = Literal["auto", "fused", "triton"]
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
    backend: Backend = "auto"
    """Kernel: fused is torch's; triton takes all parameters and the clipping of gradients in one
    launch on a GPU; auto: triton on a GPU where a trial shows that it agrees with fused."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> "AdamW":
        return AdamW(self, trainable(named_parameters))


class AdamW(Optimizer):
    """See `AdamWConfig`. State: two float32 means and a count of updates per parameter.

    Raises:
        BackendError: the kernel that was asked for by name cannot run here.
    """

    def __init__(self, cfg: AdamWConfig, params: list[NamedParameter]) -> None:
        super().__init__(p for _, p in params)
        self._cfg = cfg
        self._names = [name for name, _ in params]
        # torch makes the state at the first update. Made here, in the same form, it can be saved
        # and restored at any time, and a restored tensor is never an alias of the checkpoint's.
        self._state = {
            p: {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
            for p in self._parameters
        }
        self.kernel, taken = settle(cfg.backend, params)
        names = {item.name for item in taken}
        self._many_tensors = self._many(taken) if taken else None
        self._others = [item.parameter for item in params if item.name not in names]
        self._inner = self._fused([item for item in params if item.name not in names])

    def _many(self, params: list[NamedParameter]) -> "ManyTensors":
        from mixlab.training.optimizers.adamw_kernel import Entry, ManyTensors

        entries = []
        for name, p in params:
            rate = self._cfg.weight_decay if decays(name, p.shape) else 0.0
            state = self._state[p]
            entries.append(Entry(p, state["exp_avg"], state["exp_avg_sq"], state["step"], rate))
        return ManyTensors(entries)

    def _fused(self, params: list[NamedParameter]) -> torch.optim.AdamW | None:
        groups = []
        # One kernel takes whole tensors only, or only such as ranks have parts of.
        for decay, is_part in product((True, False), repeat=2):
            members = [
                p
                for name, p in params
                if decays(name, p.shape) == decay and is_sharded(p) == is_part
            ]
            if members:
                rate = self._cfg.weight_decay if decay else 0.0
                groups.append({"params": members, "weight_decay": rate})
        if not groups:
            return None
        cfg = self._cfg
        inner = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)
        inner.state.update({p: self._state[p] for _, p in params})
        return inner

    def step(self, lr_factor: float, clip: Tensor | None = None) -> None:
        cfg, lr = self._cfg, self._cfg.lr * lr_factor
        if self._many_tensors is not None:
            self._many_tensors.update(lr=lr, betas=cfg.betas, eps=cfg.eps, clip=clip)
        if self._inner is not None:
            scale_gradients(self._others, clip)
            for group in self._inner.param_groups:
                group["lr"] = lr
            self._inner.step()

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            f"adamw/{quantity}/{name}": tensor
            for name, p in zip(self._names, self._parameters, strict=True)
            for quantity, tensor in self._state[p].items()
        }


def settle(backend: Backend, params: list[NamedParameter]) -> tuple[str, list[NamedParameter]]:
    """Which kernel updates these parameters, in words, and those that ours takes.

    Raises:
        BackendError: our kernel was asked for by name, and cannot run here or does not agree.
    """
    device = params[0].parameter.device
    obstacle = None
    if backend == "fused":
        return "fused", []
    if device.type != "cuda" or find_spec("triton") is None:
        obstacle = f"the device is '{device.type}', and it needs an NVIDIA GPU and Triton"
    else:
        from mixlab.training.optimizers.adamw_kernel import can_take, disagreement

        taken = [
            item for item in params if not is_sharded(item.parameter) and can_take(item.parameter)
        ]
        found = disagreement(device) if taken else None
        if taken and found is None:
            return "triton", taken
        obstacle = found and f"its results differ from torch's here ({found})"
    if backend == "triton" and obstacle:
        raise BackendError(
            f"AdamW's backend 'triton' cannot run: {obstacle}. Set train.optimizer.backend=auto."
        )
    is_worth_telling = device.type == "cuda" and obstacle
    return (f"fused ({obstacle})" if is_worth_telling else "fused"), []
