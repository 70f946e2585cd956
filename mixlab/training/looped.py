"""What an update of a looped model learns from: how deep it goes, and the loss at its exits.

    loss = nats(last exit) + exit_loss_weight * mean of nats(earlier exits) + the gate's loss

Depth and truncation are pure functions of seed, position and update, so that nothing of them needs
to be kept for a resume. Exits in the loops without gradient have no loss: it would move the coda
and leave the core as it is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.data.batch import Batch
from mixlab.nn.language_model import LanguageModel, Trunk
from mixlab.nn.recursion.exit import gate_loss
from mixlab.nn.recursion.loop_pass import Exit, Loops
from mixlab.nn.recursion.looped import LoopedConfig
from mixlab.ops.cross_entropy import IGNORE, linear_cross_entropy, score_tokens


def training_loops(cfg: LoopedConfig, seed: int, position: int, update: int) -> Loops:
    """The loops of the update number `update`, counted from 0, whose examples begin at
    `position`."""
    steps = cfg.depth.draw(seed, position)
    return Loops(steps, cfg.bp_loops(update), every_exit=_reads_exits(cfg))


def typical_loops(cfg: LoopedConfig) -> Loops:
    """The loops of an update at the trained depth, once the ramp is over."""
    return Loops(cfg.depth.trained_steps, cfg.bp_max_loops, every_exit=_reads_exits(cfg))


def _reads_exits(cfg: LoopedConfig) -> bool:
    return cfg.exit_loss_weight > 0 or cfg.halting.kind == "gate"


class ExitLosses(NamedTuple):
    loss: Tensor  # scalar, sum over targets of all that the exits add to the last one's nats
    figures: dict[str, Tensor]  # detached sums over targets, by name


def exit_losses(
    model: LanguageModel, out: Trunk, batch: Batch, compute_dtype: torch.dtype | None
) -> ExitLosses:
    """The loss at the exits before the last, and the gate's, for one micro-batch."""
    assert model.cfg.recursion is not None and out.loops is not None
    cfg, exits = model.cfg.recursion, out.loops.exits
    targets = batch.targets.flatten()
    loss = torch.zeros((), device=targets.device)
    figures: dict[str, Tensor] = {}
    earlier = [found for found in exits[:-1] if found.has_gradient]
    if cfg.exit_loss_weight and earlier:
        nats = [
            linear_cross_entropy(
                found.h.flatten(0, 1), model.head_weight, targets, compute_dtype=compute_dtype
            )
            for found in earlier
        ]
        mean = torch.stack(nats).mean()
        loss = loss + cfg.exit_loss_weight * mean
        figures["earlier_exits_loss_nats"] = mean.detach()
    if cfg.halting.kind == "gate" and exits:
        scores = torch.stack(
            [_nats(model, found, targets, compute_dtype) for found in exits]
        )  # (S, N)
        logits = torch.stack(
            [found.gate_logits.flatten() for found in exits if found.gate_logits is not None]
        )
        gate = gate_loss(logits, scores, targets != IGNORE, cfg.halting)
        loss = loss + gate.loss
        figures["act_penalty"] = gate.act_penalty.detach()
        figures["expected_steps"] = gate.expected_steps
    return ExitLosses(loss, figures)


def _nats(
    model: LanguageModel, found: Exit, targets: Tensor, compute_dtype: torch.dtype | None
) -> Tensor:
    """(N,) nats at one exit, without a graph."""
    h = found.h.detach().flatten(0, 1)
    return score_tokens(h, model.head_weight, targets, compute_dtype=compute_dtype).nats
