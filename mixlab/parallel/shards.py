"""Tensors of which every rank holds a part: rows of the first dimension.

Loading PyTorch's sharded tensors takes a second, so nothing here does it: where nobody has loaded
them, there are none.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_MODULE = "torch.distributed.tensor"


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only its rows of the tensor."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(tensor, module.DTensor)


def own_rows(tensor: Any) -> Tensor:
    """The rows that this rank holds, not copied; of an ordinary tensor all."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def all_rows(tensor: Any) -> Tensor:
    """The whole tensor; every rank must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def rows_for(like: Any, whole: Tensor) -> Tensor:
    """The rows of `whole` that this rank would hold if it were sharded as `like` is."""
    if not is_sharded(like):
        return whole
    if is_sharded(whole):
        return own_rows(whole)
    from torch.distributed.tensor import Shard

    assert tuple(like.placements) == (Shard(0),), "rows are what ranks share out"
    rank, size = like.device_mesh.get_local_rank(), like.device_mesh.size()
    n_most = -(-whole.shape[0] // size)  # as torch.chunk cuts
    return whole[n_most * rank : n_most * (rank + 1)]


def same_rows(like: Any, own: Tensor) -> Tensor:
    """A tensor sharded as `like` is, of which this rank holds `own`."""
    if not is_sharded(like):
        return own
    kind = sys.modules[_MODULE].DTensor
    return kind.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape,
        stride=like.stride(),
    )  # fmt: skip


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of all the tensors together, sharded or not."""
    parts = [own_rows(t) for t in tensors if is_sharded(t)]
    whole = [t for t in tensors if not is_sharded(t)]
    norm = torch.nn.utils.get_total_norm(whole)
    if not parts:
        return norm
    square = torch.nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square)
    return (square + norm.to(square.device).square()).sqrt()
