"""When to stop refining: the kinds of halting, as settings and as pure functions of the heads.

A halting head reads the answer state once per segment and gives one logit, or two for Q-learning.
Training uses it to decide which examples stay in the batch (`bce`, `q_learning`), or to weigh the
segments (`act`, `ponder`). When to stop at inference is another question with its own threshold.

Source: `bce` TRM [arXiv:2510.04871]; `q_learning` HRM [arXiv:2506.21734]; `act` Graves
        [arXiv:1603.08983]; `ponder` PonderNet [arXiv:2107.05407].
Shapes: B batch, N segments.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.core.registry import Registry
from mixlab.ops.dtypes import at_least_float32

EPSILON = 1e-6
"""Probability mass below which Graves's sum counts as full."""
NEVER = -1e4
"""A logit without any chance."""


class HaltingConfig(Config):
    """What all kinds share: how many segments an example may stay."""

    n_logits: ClassVar[int] = 1
    unrolls: ClassVar[bool] = False  # whether one update must hold all segments of an example

    halt_max_steps: PositiveInt = 16
    """Most supervision segments of one example in training, and how many inference runs."""
    halt_min_steps: PositiveInt = 1
    """Segments that every example stays at least, in training and with early exit."""

    @model_validator(mode="after")
    def _min_below_max(self) -> "HaltingConfig":
        if self.halt_min_steps > self.halt_max_steps:
            raise Rule(
                "halt_min_steps", self.halt_min_steps,
                f"at most halt_max_steps = {self.halt_max_steps}",
            )  # fmt: skip
        return self


class FixedConfig(HaltingConfig):
    """Every example stays for halt_max_steps segments; there is no halting head."""

    kind: Literal["fixed"] = "fixed"
    n_logits: ClassVar[int] = 0


class LearnedConfig(HaltingConfig):
    """A head that is trained."""

    halt_loss_weight: NonNegativeFloat = 0.5
    """Factor on the losses of the heads."""
    halt_exploration_prob: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of examples that must stay for a random number of segments, 2 to halt_max_steps."""
    q_head_bias_init: float = -5.0
    """First bias of the head: far below 0 means "do not halt yet"."""


class BceConfig(LearnedConfig):
    """Predict whether the answer is right; in training, stop when that is likelier than not."""

    kind: Literal["bce"] = "bce"


class QLearningConfig(LearnedConfig):
    """Values of halting and of going on, the second bootstrapped from the next segment."""

    kind: Literal["q_learning"] = "q_learning"
    n_logits: ClassVar[int] = 2


class UnrolledConfig(HaltingConfig):
    """Every update runs all segments of its examples, so that their weights share a gradient."""

    unrolls: ClassVar[bool] = True

    q_head_bias_init: float = -3.0
    """First bias of the head: -3 halts with 5 % per segment, a deep start."""


class ActConfig(UnrolledConfig):
    """Adaptive computation time: answers are averaged by halting probability, steps cost."""

    kind: Literal["act"] = "act"
    act_penalty: NonNegativeFloat = 0.01
    """Nats per segment that an example is expected to stay."""


class PonderConfig(UnrolledConfig):
    """PonderNet: the expected loss over when to halt, held near a geometric distribution."""

    kind: Literal["ponder"] = "ponder"
    ponder_prior: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Halting probability per segment of the geometric prior."""
    ponder_weight: NonNegativeFloat = 0.01
    """Factor on the divergence from the prior."""


HALTING: Registry[HaltingConfig] = Registry(
    {
        "fixed": FixedConfig,
        "bce": BceConfig,
        "q_learning": QLearningConfig,
        "act": ActConfig,
        "ponder": PonderConfig,
    }
)


# --- the carry scheduler's part -----------------------------------------------------------------


def wants_halt(cfg: HaltingConfig, logits: Tensor | None, steps: Tensor, least: Tensor) -> Tensor:
    """(B,) bool: examples whose head says stop. `steps` are done, `least` must be.

    Being at halt_max_steps is another reason to stop, which the caller adds.
    """
    allowed = steps >= least.clamp(min=cfg.halt_min_steps)
    if logits is None:
        return torch.zeros_like(allowed)
    return allowed & (halt_score(cfg, logits) > 0)


def halt_score(cfg: HaltingConfig, logits: Tensor) -> Tensor:
    """(B,) how much halting is preferred; above 0 training halts. (B, 1 or 2) logits in."""
    return logits[:, 0] - logits[:, 1] if cfg.n_logits == 2 else logits[:, 0]


def least_steps(cfg: HaltingConfig, n: int, generator: torch.Generator) -> Tensor:
    """(n,) the minimum that exploration asks of each new example; 0 where it asks nothing."""
    probability = getattr(cfg, "halt_exploration_prob", 0.0)
    explores = torch.rand(n, generator=generator) < probability
    drawn = torch.randint(2, max(cfg.halt_max_steps, 2) + 1, (n,), generator=generator)
    return torch.where(explores, drawn.clamp(max=cfg.halt_max_steps), 0)


def continue_target(cfg: HaltingConfig, next_logits: Tensor, next_steps: Tensor) -> Tensor:
    """(B,) what going on is worth: the better choice at the next segment, which may be the last."""
    halt, go_on = next_logits[:, 0], next_logits[:, 1]
    is_last = next_steps >= cfg.halt_max_steps
    return torch.where(is_last, halt, torch.maximum(halt, go_on)).sigmoid()


def head_losses(
    cfg: HaltingConfig, logits: Tensor, is_right: Tensor, target: Tensor | None
) -> dict[str, Tensor]:
    """The (B,) losses of the heads, unweighted: `q_halt_loss` and, with a target, the other."""
    logits = at_least_float32(logits)
    truth = is_right.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits
    losses = {"q_halt_loss": bce(logits[:, 0], truth, reduction="none")}
    if target is not None:
        losses["q_continue_loss"] = bce(logits[:, 1], target.to(logits.dtype), reduction="none")
    return losses


# --- weights over segments ----------------------------------------------------------------------


def from_the_minimum(cfg: HaltingConfig, logits: Tensor) -> Tensor:
    """(B, N) halting logits with no chance to halt before `halt_min_steps` segments."""
    n = cfg.halt_min_steps - 1
    return torch.cat([torch.full_like(logits[:, :n], NEVER), logits[:, n:]], dim=1)


def act_weights(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Graves's weights (B, N) and the cost (B,) N(t) + R(t), from (B, N) halting logits.

    A sequence halts at the first segment where the probabilities add up to 1 - epsilon, or at the
    last. That segment gets the remainder R, through which the cost has a gradient.
    """
    h = at_least_float32(logits).sigmoid()
    before = h.cumsum(dim=1) - h  # (B, N) spent before each segment
    reaches = (before + h >= 1 - EPSILON) | (
        torch.arange(h.shape[1], device=h.device) == h.shape[1] - 1
    )
    halts_at = reaches.to(torch.int8).argmax(dim=1)  # (B,) first true
    place = torch.arange(h.shape[1], device=h.device)
    remainder = 1 - before.gather(1, halts_at[:, None])  # (B, 1)
    weights = torch.where(place < halts_at[:, None], h, 0)
    weights = torch.where(place == halts_at[:, None], remainder, weights)
    return weights, halts_at + 1 + remainder[:, 0]


def ponder_weights(logits: Tensor) -> Tensor:
    """(B, N) probability of halting at each segment; the last takes what is left."""
    go_on = F.logsigmoid(-at_least_float32(logits))  # log(1 - lambda)
    halt = F.logsigmoid(at_least_float32(logits))
    survived = go_on.cumsum(dim=1) - go_on
    log_p = survived + halt
    return torch.cat([log_p[:, :-1], survived[:, -1:]], dim=1).exp()


def ponder_divergence(weights: Tensor, prior: float) -> Tensor:
    """(B,) KL(weights || geometric(prior) cut off at N), in nats."""
    n = weights.shape[1]
    steps = torch.arange(n, device=weights.device, dtype=weights.dtype)
    geometric = prior * (1 - prior) ** steps
    log_prior = (geometric / geometric.sum()).log()
    log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    return (weights * (log_weights - log_prior)).sum(dim=1)
