"""In which order a model applies its blocks, and where a prompt left the state of each.

Shapes: B rows, D d_model.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops


class Plan:
    """In which order a model applies its blocks, and where a prefill left the state of each."""

    def __init__(self, model: LanguageModel) -> None:
        self.blocks = list(range(len(model.blocks)))
        """The block of every application, in order."""

    def states(self, state: Any) -> list[Any]:
        """The state of every application, from what a forward pass returned."""
        return state

    def run(self, x: Tensor, run: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """The stream through all applications; `run` takes it through some blocks once."""
        return run(slice(None), x)


class LoopedPlan(Plan):
    """Prelude, core as often as asked, coda; every application has a state of its own."""

    def __init__(self, model: LanguageModel, loops: Loops) -> None:
        super().__init__(model)
        assert model.recursion is not None
        self._looped, cfg = model.recursion, model.recursion.cfg
        steps = cfg.depth.trained_steps if loops.steps is None else loops.steps
        self._n_loops = steps * cfg.loops_per_step
        first, last = cfg.prelude_layers, cfg.prelude_layers + cfg.core_layers
        self._parts = slice(0, first), slice(first, last), slice(last, cfg.n_layers)
        prelude, core, coda = (self.blocks[part] for part in self._parts)
        self.blocks = prelude + core * self._n_loops + coda

    def states(self, state: Any) -> list[Any]:
        loops = (state.core[i].states for i in range(1, self._n_loops + 1))
        return [*state.prelude, *(s for states in loops for s in states), *state.coda[0].states]

    def run(self, x: Tensor, run: Callable[[slice, Tensor], Tensor]) -> Tensor:
        prelude, core, coda = self._parts
        e = run(prelude, x)
        state = self._looped.first(e)
        for _ in range(self._n_loops):
            state = run(core, self._looped.enter(state, e))
        return run(coda, state)


def plan(model: LanguageModel, loops: Loops | None) -> Plan:
    """The order of a model's blocks where no token may leave early."""
    return Plan(model) if model.recursion is None else LoopedPlan(model, loops or Loops())
