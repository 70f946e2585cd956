"""In which order a model applies its blocks, and where a prompt left the state of each.

Shapes: B rows, D d_model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.exit import KlRule
from mixlab.nn.recursion.loop_pass import Loops

Run = Callable[[slice, Tensor], Tensor]
"""Takes the stream through some blocks once."""


class Plan:
    """In which order a model applies its blocks, and where a prefill left the state of each."""

    def __init__(self, model: LanguageModel) -> None:
        self.blocks = list(range(len(model.blocks)))
        """The block of every application, in order."""

    def states(self, state: Any) -> list[Any]:
        """The state of every application, from what a forward pass returned."""
        return state

    def run(self, x: Tensor, run: Run) -> Tensor:
        """The stream through all applications."""
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

    def run(self, x: Tensor, run: Run) -> Tensor:
        prelude, core, coda = self._parts
        e = run(prelude, x)
        state = self._looped.first(e)
        for _ in range(self._n_loops):
            state = run(core, self._looped.enter(state, e))
        return run(coda, state)


class ExitingPlan(LoopedPlan):
    """Every token through every loop; one that has left keeps its state and its output.

    The loops beyond would have to be made up for once a later token goes there. A row alone saves
    them until then; rows together would each have others to make up for, so here nothing is owed.
    """

    def __init__(self, model: LanguageModel, loops: Loops) -> None:
        super().__init__(model, loops)
        self._model, self._loops = model, loops
        self._reads_output = isinstance(self._rule(), KlRule)
        cfg = self._looped.cfg
        self._per_step, self._n_steps = cfg.loops_per_step, self._n_loops // cfg.loops_per_step
        prelude, core, coda = (list(range(cfg.n_layers))[part] for part in self._parts)
        step = core * self._per_step + coda * self._reads_output
        self.blocks = prelude + step * self._n_steps + coda * (not self._reads_output)

    def _rule(self) -> Any:
        rule = self._looped.rule(self._loops, self._model.head_weight)
        assert rule is not None, "some token may leave"
        return rule

    def states(self, state: Any) -> list[Any]:
        found = list(state.prelude)
        for step in range(1, self._n_steps + 1):
            for loop in range((step - 1) * self._per_step + 1, step * self._per_step + 1):
                found += state.core[loop].states
            if self._reads_output:
                found += state.coda[step].states
        return found if self._reads_output else [*found, *state.coda[0].states]

    def run(self, x: Tensor, run: Run) -> Tensor:
        prelude, core, coda = self._parts
        rule = self._rule()
        e = run(prelude, x)
        state, out = self._looped.first(e), None
        is_going = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        for step in range(1, self._n_steps + 1):
            for _ in range(self._per_step):
                new = run(core, self._looped.enter(state, e))
                state = new if state is None else torch.where(is_going, new, state)
            h = None
            if self._reads_output:
                here = run(coda, state)
                out = here if out is None else torch.where(is_going, here, out)
                h = self._model.norm(here)[:, None]
            wants = rule.wants_to_stop(state[:, None], h)  # (B, 1)
            if step >= self._looped.cfg.min_steps:
                is_going = is_going & ~wants
        return run(coda, state) if out is None else out


def plan(model: LanguageModel, loops: Loops | None) -> Plan:
    """The order of a model's blocks."""
    if model.recursion is None:
        return Plan(model)
    loops = loops or Loops()
    exits = model.recursion.rule(loops, model.head_weight) is not None
    return (ExitingPlan if exits else LoopedPlan)(model, loops)
