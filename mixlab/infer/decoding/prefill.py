"""Reading prompts: all their tokens at once, and the state that they leave.

Shapes: B prompts of T tokens, V vocabulary.
"""

import copy
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mixlab.nn.channel_mixers.moe import Experts, Router
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.packing import Packing

Module = TypeVar("Module", bound=nn.Module)


class Prefill:
    """Prompts through the model's own forward pass, which is the one that was trained."""

    def __init__(
        self, model: LanguageModel, loops: Loops | None, precision: torch.dtype | None,
        *, prefix_lm: bool,
    ) -> None:  # fmt: skip
        self.loops, self.prefix_lm = loops, prefix_lm
        self._given, self._precision = model, precision

    @cached_property
    def _model(self) -> LanguageModel:
        """Made when first asked for: most models have a faster way on a GPU, see `prompts`."""
        model, dtype = self._given, self._precision
        is_same = dtype is None or dtype == model.embed_tokens.weight.dtype
        return model if is_same else rounded(model, dtype)

    def forget(self) -> None:
        """Round the weights anew at the next prompt."""
        self.__dict__.pop("_model", None)

    def initial_state(self, n_rows: int) -> Any:
        """Of sequences that have not begun, kept in the precision of the products."""
        return self._model.initial_state(n_rows, self._precision)

    def __call__(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, T) tokens to the last ones' logits (B, V) and the state after them."""
        model, packing = self._model, None
        if self.prefix_lm and tokens.shape[1] > 1:
            packing = Packing.whole_prefix(tokens)
        with evaluating(model), _casting(tokens.device, self._precision):
            out = model(tokens, state, packing, last_only=True, loops=self.loops)
        return at_least_float32(out.logits[:, -1]), out.state


def rounded(whole: Module, dtype: torch.dtype) -> Module:
    """A copy with the weights of its linear maps and experts in `dtype`, all other tensors shared.

    Under autocast they are rounded to it in every call, which is as many kernels more.
    """
    others = {id(tensor): tensor for tensor in [*whole.parameters(), *whole.buffers()]}
    for module in whole.modules():
        if isinstance(module, nn.Linear | Experts) and not isinstance(module, Router):
            for parameter in module.parameters(recurse=False):
                weight = parameter.detach().to(dtype)
                others[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(whole, others)


def _casting(device: torch.device, dtype: torch.dtype | None) -> Any:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
