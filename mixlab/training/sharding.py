"""FSDP2: every rank keeps its rows of the large matrices, with their gradients and optimizer state.

A block's matrices are gathered when the block runs, in the dtype of matrix products, and dropped
after it; the weights that are kept and updated are float32. What is not a hidden matrix (norms,
routers, convolutions, decay rates) is small and computes in float32: it stays whole on every rank,
so that sharding changes no figure beyond the order of sums.

Source: PyTorch FSDP [arXiv:2304.11277], `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixlab.parallel import World
from mixlab.parallel.shards import all_rows
from mixlab.training.optimizers.groups import is_hidden_matrix


def shard(model: nn.Module, world: World, compute_dtype: torch.dtype | None) -> None:
    """Shard the blocks, embedding and head of a language model over all ranks, in place.

    To be called on the device, after blocks have been compiled and before anybody keeps a
    parameter: they are new ones afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    tables = ("embed_tokens.weight", "lm_head.weight")
    kept = {
        p
        for name, p in model.named_parameters()
        if name not in tables and not is_hidden_matrix(name, p.shape)
    }
    narrow = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=None if compute_dtype is None else torch.float32,
        cast_forward_inputs=False,
    )
    wide = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=narrow, ignored_params=kept)
    fully_shard(model, mesh=mesh, mp_policy=wide, ignored_params=kept)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums, as every loss is a share of all ranks' mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "trunk")


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that `shard` has sharded; none without it."""
    return [m for m in model.modules() if hasattr(m, "set_requires_gradient_sync")]


def drop_gathered(model: nn.Module) -> None:
    """Forget what a forward pass without backward has gathered, before weights change."""
    for module in sharded_modules(model):
        module.reshard()


@torch.no_grad()
def load_whole(own: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Copy tensors of which every rank has a part into whole ones; every rank must call it."""
    for name, part in parts.items():
        own[name].copy_(all_rows(part))
