"""Which parameters decay, and which ones Muon takes: one rule by name and shape.

Weight decay is for matrices. Embeddings, norms, biases, decay rates (`A_log`), time steps
(`dt_bias`), per-channel skips (`D`) and everything with fewer than two dimensions do not decay.

Muon is for hidden matrices: two-dimensional weights, and three-dimensional stacks of them such as
the experts of a mixture. It does not take

- embeddings and the output head: their rows belong to single tokens, and most rows of a gradient
  are rare; orthogonalising would give every one of them the same step;
- routers (a module named `gate` or `router`): their rows belong to single experts, for the same
  reason;
- convolutions: a depthwise kernel is a set of small filters and no matrix;
- matrices with a side of 1, which are vectors, or of 0, which are nothing.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

_ROUTERS = frozenset({"gate", "router"})
_NEVER_DECAY = frozenset({"bias", "A_log", "D"})


class NamedParameter(NamedTuple):
    """A parameter and its dotted name in the model."""

    name: str
    parameter: nn.Parameter


def decays(name: str, shape: Sequence[int]) -> bool:
    """Whether weight decay applies to the parameter of this name and shape."""
    parts = name.split(".")
    leaf = parts[-1]
    if len(shape) < 2 or leaf in _NEVER_DECAY or leaf.endswith("_bias"):
        return False
    return not any("norm" in part or "embed" in part for part in parts)


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon takes the parameter of this name and shape."""
    if len(shape) not in (2, 3) or min(shape[-2:]) <= 1 or not decays(name, shape):
        return False
    parts = name.split(".")
    module = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    return "lm_head" not in parts and module not in _ROUTERS and "conv" not in module


def trainable(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[NamedParameter]:
    """The parameters that take gradients; a tied one must be given once."""
    params = [NamedParameter(n, p) for n, p in named_parameters if p.requires_grad]
    assert params, "a model without trainable parameters has nothing to optimise"
    assert len({id(p) for _, p in params}) == len(params), "a tied parameter was given twice"
    assert len({name for name, _ in params}) == len(params), "two parameters share a name"
    return params
