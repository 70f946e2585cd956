"""One pass through a looped model: every loop, every exit, and the decoding state of each.

Each application of a block has a state of its own. A token that has left early owes nothing to the
loops beyond: they are run for it, on the state that it left with, only when a later token goes
there, so a decoding step costs what its tokens need and gives what one long call gives.
Shapes: B batch, T tokens, S tokens so far, D d_model.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mixlab.core.errors import LabError
from mixlab.nn.block import Block
from mixlab.nn.recursion.exit import GateRule, KlRule
from mixlab.ops.packing import Packing

if TYPE_CHECKING:
    from mixlab.nn.recursion.looped import Looped


MAX_LOOPS = 4096
"""Beyond that a config is a slip of the pen."""


class Loops(NamedTuple):
    """How often and how to loop in one call; the default is the trained depth for every token."""

    steps: int | None = None
    """Steps; None: those that the model was trained for."""
    bp_loops: int | None = None
    """The last loops that carry gradient; None: all."""
    every_exit: bool = False
    """Return what every exit gives, for a loss or a measurement there."""
    may_exit: bool = False
    """Let tokens leave by the model's exit rule."""
    exit_threshold: float | None = None
    """In place of the configured threshold."""
    catches_up: bool = False
    """Take tokens that have left through all further loops at once, on the state that they left
    with; otherwise that waits until a later token goes there."""


class Exit(NamedTuple):
    """What a step left behind."""

    step: int
    h: Tensor  # (B, T, D), through the coda and the last norm
    gate_logits: Tensor | None  # (B, T) of stopping here
    has_gradient: bool


class LoopTrace(NamedTuple):
    exits: list[Exit]  # in order, the last step's last; empty unless asked for
    n_steps: Tensor | None  # (B, T) steps that each token took; None where all took all


class Stream(NamedTuple):
    """The state of one application of some blocks, after the first `n_tokens` tokens."""

    states: list[Any]
    n_tokens: int


class LoopedState(NamedTuple):
    """Decoding state: every application of a block keeps its own."""

    batch_size: int
    device: torch.device
    dtype: torch.dtype
    loops: Loops | None  # of the calls so far; they must not change on the way
    n_tokens: int
    prelude: list[Any]
    core: dict[int, Stream]  # by loop
    coda: dict[int, Stream]  # by exit, or 0 where only final states are read
    inputs: Tensor | None  # (B, S, D) what the prelude gave; with exits only
    finals: Tensor | None  # (B, S, D) the states that tokens left with; with exits only

    @classmethod
    def new(cls, batch_size: int, device: torch.device, dtype: torch.dtype) -> "LoopedState":
        """Of sequences that have not begun."""
        return cls(batch_size, device, dtype, None, 0, [], {}, {}, None, None)


class LoopedOutput(NamedTuple):
    h: Tensor  # (B, T, D), ready for the head
    state: LoopedState | None
    trace: LoopTrace


class Stack:
    """The blocks of a model, run piece by piece, and what they report over all loops."""

    def __init__(self, blocks: Sequence[Block], *, recomputes: bool = False) -> None:
        self._blocks, self._recomputes = blocks, recomputes
        self._aux: dict[int, list[Tensor]] = {}
        self.metrics: dict[str, dict[str, Tensor]] = {}
        """Figures of the channel mixers, of each layer's last run."""

    def run(
        self, where: slice, x: Tensor, states: list[Any] | None, packing: Packing | None
    ) -> tuple[Tensor, list[Any]]:
        """The layers of `where` on (B, T, D) with their states; the stream and the new states."""
        new_states = []
        for k, i in enumerate(range(where.start, where.stop)):
            if self._recomputes and torch.is_grad_enabled() and states is None:
                out = self._blocks[i].recomputing(x, packing)
            else:
                out = self._blocks[i](x, None if states is None else states[k], packing)
            x = out.x
            new_states.append(out.state)
            if out.aux_loss is not None and torch.is_grad_enabled():
                self._aux.setdefault(i, []).append(out.aux_loss)
            if out.metrics:
                self.metrics[f"layer_{i:02d}"] = out.metrics
        return x, new_states

    def empty(self, where: slice, state: "LoopedState") -> list[Any]:
        """Decoding states of the layers of `where` before the first token."""
        return [
            block.sequence_mixer.initial_state(state.batch_size, state.device, state.dtype)
            for block in self._blocks[where]
        ]

    @property
    def aux_loss(self) -> Tensor | None:
        """Sum over layers of the mean over a layer's runs: a layer counts once, as in a plain
        stack, however often it ran. Runs without gradient do not count."""
        means = [torch.stack(runs).mean() for runs in self._aux.values()]
        return torch.stack(means).sum() if means else None


@contextmanager
def _without_gradient(device_type: str, is_off: bool) -> Iterator[None]:
    """No graph; nor may a cast that autocast keeps here be taken into loops that have one."""
    if not is_off:
        yield
        return
    with torch.no_grad(), torch.autocast(
        device_type, dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type), cache_enabled=False,
    ):  # fmt: skip
        yield


class LoopPass:
    """One pass, with what is the same in all of its loops."""

    def __init__(
        self, looped: "Looped", stack: Stack, norm: Callable[[Tensor], Tensor],
        state: LoopedState | None, packing: Packing | None, loops: Loops, *, keeps_finals: bool,
    ) -> None:  # fmt: skip
        cfg = looped.cfg
        self.looped, self.cfg, self.stack, self.norm = looped, cfg, stack, norm
        self.before, self.packing, self.loops = state, packing, loops
        self.keeps_finals = keeps_finals
        ends = (0, cfg.prelude_layers, cfg.prelude_layers + cfg.core_layers, cfg.n_layers)
        self.prelude, self.core, self.coda = (slice(a, b) for a, b in itertools.pairwise(ends))
        if state is not None and state.loops not in (None, loops):
            raise LabError(
                f"decoding with {loops}: expected the settings that the state was made with, "
                f"{state.loops}. Start from an empty state."
            )
        self.n_before = 0 if state is None else state.n_tokens
        self.prelude_state: list[Any] = []
        self.core_streams = {} if state is None else dict(state.core)
        self.coda_streams = {} if state is None else dict(state.coda)

    def all_steps(self, x: Tensor) -> LoopedOutput:
        """Every token takes every step; loops before the last `bp_loops` leave no graph."""
        loops, gate = self.loops, self.looped.gate
        e, n_loops = self._read(x), loops.steps * self.cfg.loops_per_step
        n_free = 0 if loops.bp_loops is None else max(0, n_loops - loops.bp_loops)
        state = self.looped.first(e)
        exits: list[Exit] = []
        for loop in range(1, n_loops + 1):
            has_gradient = loop > n_free
            with _without_gradient(e.device.type, not has_gradient):
                state = self._loop(loop, state, e if has_gradient else e.detach())
                step, rest = divmod(loop, self.cfg.loops_per_step)
                if rest or not (loop == n_loops or (loops.every_exit and self._is_wanted(loop))):
                    continue
                key = step if loops.every_exit else 0
                h = self._leave(key, state, e)
            # Outside, so that the gate has a graph at every exit.
            logits = gate(state) if loops.every_exit and gate is not None else None
            exits.append(Exit(step, h, logits, has_gradient))
        trace = LoopTrace(exits if loops.every_exit else [], None)
        return LoopedOutput(exits[-1].h, self._after(e, state), trace)

    def _is_wanted(self, loop: int) -> bool:
        """Exits without gradient matter to a gate and to measurements, not to the blocks."""
        n_free = self.loops.steps * self.cfg.loops_per_step - (self.loops.bp_loops or MAX_LOOPS)
        return loop > n_free or self.looped.gate is not None

    def until_exits(self, x: Tensor, rule: GateRule | KlRule) -> LoopedOutput:
        """Tokens leave by `rule`; the loops end when all have left."""
        cfg, reads_output = self.cfg, isinstance(rule, KlRule)
        e = self._read(x)
        state = self.looped.first(e)
        is_going = torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)
        n_steps = torch.zeros(e.shape[:2], dtype=torch.int64, device=e.device)
        h: Tensor | None = None
        is_prefix = self.packing is not None and self.packing.prefix is not None
        for step in range(1, self.loops.steps + 1):
            for loop in range((step - 1) * cfg.loops_per_step + 1, step * cfg.loops_per_step + 1):
                new = self._loop(loop, state, e)
                # What has left stays as it was; in the first loop everything is going.
                state = new if state is None else torch.where(is_going[..., None], new, state)
            n_steps += is_going
            here = None
            if reads_output:
                here = self._leave(step, state, e)
                h = here if h is None else torch.where(is_going[..., None], here, h)
            wants = rule.wants_to_stop(state, here)
            if step >= cfg.min_steps:
                is_going = is_going & ~wants
            # A prompt that is read both ways goes through every loop, so that no token of it is
            # left to be caught up on alone.
            if not (is_prefix or self.loops.catches_up) and not is_going.any():
                break
        if h is None:
            h = self._leave(0, state, e)
        return LoopedOutput(h, self._after(e, state), LoopTrace([], n_steps))

    # --- blocks -----------------------------------------------------------------------------------

    def _read(self, x: Tensor) -> Tensor:
        kept = None
        if self.before is not None:
            kept = self.before.prelude or self.stack.empty(self.prelude, self.before)
        e, self.prelude_state = self.stack.run(self.prelude, x, kept, self.packing)
        return e

    def _loop(self, loop: int, state: Tensor | None, e: Tensor) -> Tensor:
        return self._apply(self.core, self.core_streams, loop, state, e)

    def _leave(self, key: int, state: Tensor, e: Tensor) -> Tensor:
        return self.norm(self._apply(self.coda, self.coda_streams, key, state, e))

    def _apply(
        self, where: slice, streams: dict[int, Stream], key: int, state: Tensor | None, e: Tensor
    ) -> Tensor:
        """The blocks of `where` on the current tokens; earlier tokens that this application has
        not seen, because they had left and nothing went deeper, come first."""
        n_new, before = e.shape[1], self.before
        stream = streams.get(key)
        if before is not None:
            stream = stream or Stream(self.stack.empty(where, before), 0)
            if stream.n_tokens < self.n_before:
                assert before.inputs is not None and before.finals is not None
                missed = slice(stream.n_tokens, self.n_before)
                e = torch.cat([before.inputs[:, missed], e], dim=1)
                assert state is not None, "every token takes the first loop"
                state = torch.cat([before.finals[:, missed], state], dim=1)
        x = state if where is self.coda else self.looped.enter(state, e)
        states = None if stream is None else stream.states
        x, states = self.stack.run(where, x, states, self.packing)
        if before is not None:
            streams[key] = Stream(states, self.n_before + n_new)
        return x[:, -n_new:]

    def _after(self, e: Tensor, state: Tensor) -> LoopedState | None:
        before = self.before
        if before is None:
            return None
        inputs = finals = None
        if self.keeps_finals:
            has_more = before.inputs is not None
            inputs = torch.cat([before.inputs, e], dim=1) if has_more else e
            finals = torch.cat([before.finals, state], dim=1) if has_more else state
        return before._replace(
            loops=self.loops, n_tokens=self.n_before + e.shape[1], prelude=self.prelude_state,
            core=self.core_streams, coda=self.coda_streams, inputs=inputs, finals=finals,
        )  # fmt: skip
