"""The ways in which a looped model is called: a check holds for every one of them, or fails."""

import torch
from torch import Tensor, nn

from mixlab.checks.base import random_tokens
from mixlab.nn.recursion.exit import stop_chances
from mixlab.nn.recursion.loop_pass import Exit, Loops

ROWS, LENGTH = 2, 24
MAX_DEPTHS = 6


def loop_settings(model: nn.Module, *, thorough: bool = True) -> list[Loops | None]:
    """Every depth to twice the trained one, and with early exits; [None] for a plain model.

    Beyond `MAX_DEPTHS` depths some are left out; without `thorough` one loop, the trained depth and
    twice that remain. Tokens leave at a threshold at which about half of them do on the way, and,
    where all is looked at, at one at which most leave at once.
    """
    looped = getattr(model, "recursion", None)
    if looped is None:
        return [None]
    steps = looped.cfg.depth.trained_steps
    depths = {1, steps, 2 * steps}
    if thorough:
        depths |= set(range(1, min(2 * steps, MAX_DEPTHS) + 1))
    settings: list[Loops | None] = [Loops(n) for n in sorted(depths)]
    if looped.cfg.halting.kind != "fixed":
        middle = _middle(model, steps)
        settings.append(Loops(steps, may_exit=True, exit_threshold=middle))
        if thorough:
            early = middle / 10 if looped.cfg.halting.kind == "gate" else 10 * middle
            settings.append(Loops(steps, may_exit=True, exit_threshold=early))
    return settings


@torch.no_grad()
def _middle(model: nn.Module, steps: int) -> float:
    """The median of what the exit rule compares with its threshold, half of the way down."""
    tokens = random_tokens(model, ROWS, LENGTH, seed=90)
    trunk = model.trunk(tokens, None, None, Loops(max(2, steps), every_exit=True))
    exits = trunk.loops.exits
    half = max(1, len(exits) // 2)
    if model.recursion.cfg.halting.kind == "gate":
        logits = torch.stack([found.gate_logits for found in exits])
        # Of one step more, as the last one stops whatever is left.
        chances = stop_chances(logits[: half + 1])[:half]
        return float(chances.sum(dim=0).quantile(0.5).clamp(1e-6, 1 - 1e-6))
    before, after = _log_probs(model, exits[half - 1]), _log_probs(model, exits[half])
    return float((after.exp() * (after - before)).sum(dim=-1).quantile(0.5))


def _log_probs(model: nn.Module, found: Exit) -> Tensor:
    return (found.h @ model.head_weight.T).log_softmax(dim=-1)
