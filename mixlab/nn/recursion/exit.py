"""When a token of a looped model has been refined enough, decided for each token by itself.

Every decision looks at the token's own state or output, which are causal: no later token and no
other row of the batch has a say. Thresholds belong to inference and can be chosen anew for every
call; training runs all of a batch's steps.

Source: KL between successive outputs, Huginn [arXiv:2502.05171]; gate and quantile rule,
        Ouro [arXiv:2510.25741]; the initial bias, arXiv:1807.03819 and its successors.
Shapes: B batch, T tokens, D d_model, S steps.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from mixlab.core.config import Config
from mixlab.core.registry import Registry
from mixlab.nn.linear import Linear
from mixlab.ops.dtypes import at_least_float32


class FixedHalting(Config):
    """All steps for every token."""

    kind: Literal["fixed"] = "fixed"


class KlExit(Config):
    """Stop a token whose predicted distribution no longer moves; nothing is trained for it."""

    kind: Literal["kl_exit"] = "kl_exit"
    exit_threshold: float | None = Field(default=None, ge=0)
    """Stop below this many nats between the outputs of one step and the next; absent: chosen on
    validation text when training ends, and 0.0005 until then."""
    exit_max_rise: NonNegativeFloat = 0.01
    """Nats per token that leaving early may cost; it chooses the threshold."""
    unchosen: ClassVar[float] = 5e-4
    never: ClassVar[float] = 0.0


class GateHalting(Config):
    """A learned gate: the probability to stop after each step, from the token's own state.

    Its loss is `sum_n p_n nats_n + ponder_weight * sum_n n p_n - entropy_weight * entropy(p)`, with
    p_n the probability to stop after step n. Only the gate learns from it, not the blocks.
    """

    kind: Literal["gate"] = "gate"
    exit_threshold: float | None = Field(default=None, gt=0, le=1)
    """Stop once the probability to have stopped by now reaches this; absent: chosen on validation
    text when training ends, and 0.5 until then."""
    exit_max_rise: NonNegativeFloat = 0.01
    """Nats per token that leaving early may cost; it chooses the threshold."""
    unchosen: ClassVar[float] = 0.5
    never: ClassVar[float] = 1.0
    ponder_weight: NonNegativeFloat = 0.01
    """Nats that one more expected step costs the gate."""
    entropy_weight: NonNegativeFloat = 0.01
    """Reward, per nat, for an undecided gate; keeps it from settling too early."""
    q_head_bias_init: float = Field(default=-3.0, ge=-10, le=10)
    """First bias of the gate: -3 begins with 5 % per step, so that deep steps are trained."""


HALTING = Registry({"fixed": FixedHalting, "kl_exit": KlExit, "gate": GateHalting})
"""Every exit rule of looped models, by name."""
Halting = FixedHalting | KlExit | GateHalting


class Gate(Linear):
    """(B, T, D) states to (B, T) logits of stopping now.

    States come detached: the gate judges the blocks, it does not bend them.
    """

    def __init__(self, d_model: int, *, bias: float) -> None:
        super().__init__(d_model, 1, bias=True)
        nn.init.constant_(self.bias, bias)

    def forward(self, state: Tensor) -> Tensor:
        state = at_least_float32(state.detach())
        scale = state.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
        with torch.autocast(state.device.type, enabled=False):
            return super().forward((state * scale).to(self.weight.dtype)).squeeze(-1)


def stop_chances(logits: Tensor) -> Tensor:
    """(S, ...) gate logits to the probability of stopping after each step; adds up to 1.

    The last step stops whatever is left, so its own logit has no effect.
    """
    log_stop = nn.functional.logsigmoid(logits)
    log_go = nn.functional.logsigmoid(-logits)
    log_stop = torch.cat([log_stop[:-1], torch.zeros_like(log_stop[:1])])
    before = torch.cat([torch.zeros_like(log_go[:1]), log_go[:-1].cumsum(dim=0)])
    return (before + log_stop).exp()


class GateLoss(NamedTuple):
    loss: Tensor  # scalar, sum over targets; differentiable in the gate alone
    act_penalty: Tensor  # its part that counts steps, sum over targets
    expected_steps: Tensor  # detached, sum over targets


def gate_loss(logits: Tensor, nats: Tensor, is_target: Tensor, cfg: GateHalting) -> GateLoss:
    """The gate's loss from its logits (S, N), the nats of every exit (S, N) and (N,) bool."""
    chances = stop_chances(logits)
    steps = torch.arange(1, len(chances) + 1, device=chances.device, dtype=chances.dtype)
    expected = (chances * steps[:, None]).sum(dim=0)  # (N,)
    entropy = torch.special.entr(chances).sum(dim=0)
    penalty = cfg.ponder_weight * expected
    per_token = (chances * nats.detach()).sum(dim=0) + penalty - cfg.entropy_weight * entropy
    zero = torch.zeros_like(per_token)
    return GateLoss(
        torch.where(is_target, per_token, zero).sum(),
        torch.where(is_target, penalty, zero).sum(),
        torch.where(is_target, expected, zero).sum().detach(),
    )


class GateRule:
    """Tokens stop once the gate's cumulative probability reaches the threshold."""

    def __init__(self, gate: Gate, threshold: float) -> None:
        self._gate, self._threshold = gate, threshold
        self._log_going: Tensor | None = None

    def wants_to_stop(self, state: Tensor, h: Tensor | None) -> Tensor:
        """(B, T) bool after the step that left `state` (B, T, D)."""
        log_go = nn.functional.logsigmoid(-self._gate(state))
        self._log_going = log_go if self._log_going is None else self._log_going + log_go
        return self._log_going <= (math.log1p(-self._threshold) if self._threshold < 1 else -1e9)


class KlRule:
    """Tokens stop once their output differs from the previous step's by less than the threshold."""

    def __init__(self, head_weight: Tensor, threshold: float) -> None:
        self._weight, self._threshold = head_weight, threshold
        self._before: Tensor | None = None

    def wants_to_stop(self, state: Tensor, h: Tensor | None) -> Tensor:
        """(B, T) bool after the step whose output is `h` (B, T, D), normed for the head."""
        assert h is not None
        with torch.autocast(h.device.type, enabled=False):
            weight = at_least_float32(self._weight)
            now = (at_least_float32(h) @ weight.T.to(at_least_float32(h).dtype)).log_softmax(-1)
        before, self._before = self._before, now
        if before is None:
            return torch.zeros(h.shape[:-1], dtype=torch.bool, device=h.device)
        return (now.exp() * (now - before)).sum(dim=-1) < self._threshold
