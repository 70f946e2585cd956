"""Depth recursion in a causal model: prelude, core, coda; the core's blocks run several times.

    e   = prelude(embedding)
    s_1 = core(e)                           one loop is the plain model
    s_i = core(norm(s_{i-1}) + norm(e))     the input comes again, at the same scale as the state
    h   = norm(coda(s_r))

The norm at the entry bounds the state, whatever the number of loops; `injection` and `state_init`
vary the entry. H_cycles x L_cycles loops make a step: an exit stands, and depth is counted, at
steps. A token that has left keeps its state and shows it to later tokens in the deeper loops, so
each row is what it would be alone, and a decoding state holds what one long call would have seen.

Source: Huginn [arXiv:2502.05171]; H_cycles and L_cycles are names of HRM [arXiv:2506.21734].
Cost:   the core times r; a decoding state per loop and core layer.
Shapes: B batch, T tokens, D d_model.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.core.errors import LabError, Rule
from mixlab.nn.linear import Linear
from mixlab.nn.norm import RMSNorm
from mixlab.nn.recursion.depth import DEPTHS, PoissonDepth
from mixlab.nn.recursion.exit import HALTING, FixedHalting, Gate, GateRule, KlRule
from mixlab.nn.recursion.loop_pass import (
    MAX_LOOPS,
    LoopedOutput,
    LoopedState,
    LoopPass,
    Loops,
    Stack,
)
from mixlab.ops.packing import Packing


class LoopedConfig(Config):
    """Which layers of the stack run more than once, how often, and what a loop reads."""

    kind: Literal["looped"] = "looped"
    prelude_layers: NonNegativeInt = 1
    """Layers before the loops, run once."""
    core_layers: PositiveInt = 2
    """Layers that are run in every loop."""
    coda_layers: NonNegativeInt = 1
    """Layers after the loops, run once per exit."""
    H_cycles: int = Field(default=1, ge=1, le=100)
    """Times L_cycles loops in one step."""
    L_cycles: int = Field(default=1, ge=1, le=100)
    """Loops of the core in one of the H_cycles."""
    depth: DEPTHS.annotation() = PoissonDepth()  # type: ignore[valid-type]
    """Steps of an update in training, and of evaluation."""
    injection: Literal["add", "linear", "concat"] = "add"
    """How the input joins the state: s + e, s + We, or W[s, e]; every W starts as the sum."""
    state_init: Literal["input", "zeros", "learned"] = "input"
    """The state before the first loop; with `input` the first loop reads the prelude as it is."""
    state_norm: Literal["learned", "plain"] = "learned"
    """The norm of the state at the entry of a loop: with a weight per channel, or without any."""
    bp_max_loops: PositiveInt | None = None
    """The last loops that carry gradient; absent: all."""
    bp_min_loops: PositiveInt | None = None
    """How many carry gradient in the first update; absent: bp_max_loops."""
    bp_ramp_updates: NonNegativeInt = 0
    """Updates over which their number grows from bp_min_loops to bp_max_loops."""
    exit_loss_weight: NonNegativeFloat = 0.2
    """Weight of the mean loss at the exits before the last, where gradient flows."""
    halting: HALTING.annotation() = FixedHalting()  # type: ignore[valid-type]
    """Whether and when a token may leave before the last step, at inference."""
    halt_granularity: Literal["token", "sequence"] = "token"
    """Who leaves; in a causal model only a token can."""

    @model_validator(mode="before")
    @classmethod
    def _published_name(cls, tree: Any) -> Any:
        """`use_act`, as the seed experiments call it: a learned gate, or none."""
        if not (isinstance(tree, dict) and "use_act" in tree):
            return tree
        tree = dict(tree)
        use_act = tree.pop("use_act")
        if not isinstance(use_act, bool):
            raise Rule("use_act", use_act, "true or false")
        if use_act and "halting" not in tree:
            tree["halting"] = {"kind": "gate"}
        elif not use_act:
            tree["halting"] = {"kind": "fixed"}
        return tree

    @model_validator(mode="after")
    def _fits(self) -> "LoopedConfig":
        if self.halt_granularity == "sequence":
            raise Rule(
                "halt_granularity", "sequence", "token in a causal model",
                "A decision per sequence would let later tokens gate what earlier ones see.",
            )  # fmt: skip
        if self.bp_max_loops is None and (self.bp_min_loops or self.bp_ramp_updates):
            raise Rule("bp_max_loops", None, "a number of loops, where bp_min_loops or a ramp is")
        if self.bp_min_loops is not None and self.bp_min_loops > self.bp_max_loops:
            raise Rule(
                "bp_min_loops", self.bp_min_loops, f"at most bp_max_loops = {self.bp_max_loops}"
            )
        trained_loops = self.depth.trained_steps * self.loops_per_step
        is_cut = self.bp_max_loops is not None and self.bp_max_loops < trained_loops
        if self.state_init == "learned" and is_cut:
            raise Rule(
                "state_init", "learned", "input or zeros where bp_max_loops cuts the gradient",
                f"At {trained_loops} loops no gradient would reach the first state.",
            )  # fmt: skip
        if self.depth.max_steps * self.loops_per_step > MAX_LOOPS:
            raise Rule(
                "depth", self.depth.max_steps,
                f"at most {MAX_LOOPS} loops, steps x H_cycles x L_cycles together",
            )  # fmt: skip
        return self

    @property
    def loops_per_step(self) -> int:
        return self.H_cycles * self.L_cycles

    @property
    def n_layers(self) -> int:
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def min_steps(self) -> int:
        """No token leaves earlier."""
        return getattr(self.depth, "halt_min_steps", 1)

    def bp_loops(self, update: int) -> int | None:
        """The last loops that carry gradient in this update, counted from 0; None: all."""
        if self.bp_max_loops is None or self.bp_min_loops is None:
            return self.bp_max_loops
        if update >= self.bp_ramp_updates:
            return self.bp_max_loops
        rise = self.bp_max_loops - self.bp_min_loops
        return self.bp_min_loops + rise * update // self.bp_ramp_updates

    def n_params(self, d_model: int) -> int:
        """Trainable numbers besides the blocks."""
        matrix = {"add": 0, "linear": 1, "concat": 2}[self.injection] * d_model**2
        start = d_model if self.state_init == "learned" else 0
        gate = d_model + 1 if self.halting.kind == "gate" else 0
        norms = d_model if self.state_norm == "plain" else 2 * d_model
        return matrix + start + gate + norms

    def flops_of_entry(self, d_model: int) -> int:
        """Forward FLOPs per token of one injection."""
        return 2 * {"add": 0, "linear": 1, "concat": 2}[self.injection] * d_model**2


class Looped(nn.Module):
    """What a looped model has besides its blocks: the entry of a loop, and perhaps a gate."""

    def __init__(self, cfg: LoopedConfig, d_model: int, *, norm_eps: float) -> None:
        super().__init__()
        self.cfg = cfg
        self.state_norm = RMSNorm(d_model, eps=norm_eps, plain=cfg.state_norm == "plain")
        self.input_norm = RMSNorm(d_model, eps=norm_eps)
        self.inject: Linear | None = None
        if cfg.injection != "add":
            n_inputs = 2 if cfg.injection == "concat" else 1
            self.inject = Linear(n_inputs * d_model, d_model)
            with torch.no_grad():  # the sum: a random map would stand between loops
                self.inject.weight.copy_(torch.eye(d_model).repeat(1, n_inputs))
        learned = torch.randn(d_model) if cfg.state_init == "learned" else None
        self.first_state = None if learned is None else nn.Parameter(learned)
        halting = cfg.halting
        bias = halting.q_head_bias_init if halting.kind == "gate" else None
        self.gate = None if bias is None else Gate(d_model, bias=bias)
        self.chosen_threshold: float | None = None
        """What was chosen on validation text; counts where the config names no threshold."""

    def enter(self, state: Tensor | None, e: Tensor) -> Tensor:
        """What the core reads: the state of the last loop (None: there is none) and the input."""
        if state is None:
            return e
        state, e = self.state_norm(state), self.input_norm(e)
        if self.inject is None:
            return state + e
        if self.cfg.injection == "linear":
            return state + self.inject(e)
        return self.inject(torch.cat([state, e], dim=-1))

    def first(self, e: Tensor) -> Tensor | None:
        """The state before the first loop, for the prelude's output (B, T, D)."""
        if self.cfg.state_init == "input":
            return None
        if self.first_state is None:
            return torch.zeros_like(e)
        return self.first_state.to(e.dtype).expand_as(e)

    @property
    def threshold(self) -> float:
        """At which tokens leave unless a call says otherwise; not for fixed halting."""
        halting = self.cfg.halting
        assert halting.kind != "fixed", "no token leaves"
        for found in (halting.exit_threshold, self.chosen_threshold):
            if found is not None:
                return found
        return halting.unchosen

    def rule(self, loops: Loops, head_weight: Tensor) -> GateRule | KlRule | None:
        """The exit rule of one call."""
        halting = self.cfg.halting
        if not loops.may_exit or halting.kind == "fixed":
            return None
        threshold = loops.exit_threshold
        threshold = self.threshold if threshold is None else threshold
        if halting.kind == "kl_exit":
            return KlRule(head_weight, threshold)
        assert self.gate is not None
        return GateRule(self.gate, threshold)

    def forward(
        self,
        x: Tensor,  # (B, T, D) embeddings
        stack: Stack,
        norm: Callable[[Tensor], Tensor],
        head_weight: Tensor,
        state: LoopedState | None,
        packing: Packing | None,
        loops: Loops,
    ) -> LoopedOutput:
        """Embeddings to what the head reads; `norm` is the model's last one."""
        steps = self.cfg.depth.trained_steps if loops.steps is None else loops.steps
        if steps < 1 or steps * self.cfg.loops_per_step > MAX_LOOPS:
            raise LabError(f"depth = {steps}: expected 1 to {MAX_LOOPS // self.cfg.loops_per_step}")
        loops = loops._replace(steps=steps)
        rule = self.rule(loops, head_weight)
        call = LoopPass(self, stack, norm, state, packing, loops, keeps_finals=rule is not None)
        if rule is None:
            return call.all_steps(x)
        return call.until_exits(x, rule)
