"""What a check of a refiner is given, and puzzles to try it on.

Checks feed tokens, compare answers and look at gradients. Structure is looked at with few cycles:
untrained recursion amplifies rounding from call to call, and no question here is about depth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixlab.checks.base import Finding, new_generator
from mixlab.nn.recursion.refiner import Refiner, RefinerConfig
from mixlab.tasks.base import Task
from mixlab.tasks.examples import Puzzles
from mixlab.training.optimizers import AdamWConfig, OptimizerConfig
from mixlab.training.refinement import Refinement

N_ROWS = 4
TOLERANCE = 2.0**-26
"""Largest relative difference in float64 that counts as the same result: half of its digits."""


class TrainedRefiner(NamedTuple):
    """What a finished or stopped run can show besides its architecture."""

    model: Refiner  # with the weights that are evaluated
    puzzles: Puzzles  # of the validation set


@dataclass(frozen=True)
class RefinerContext:
    """Everything that checks of a refiner may look at. Nothing in it is changed by a check."""

    build: Callable[[], Refiner]
    """A new model on the CPU, the same at every call: first weights, or those of a run."""
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    """Whose updates must not be rounded away."""
    loss_type: str = "softmax"
    """How logits become probabilities in the loss."""
    task: Task | None = None
    """What the puzzles are; None: no puzzles are at hand."""
    sets: Mapping[str, Any] | None = None
    """The `TaskSet` of "train", "validation" and "test"; None: no puzzles are at hand."""
    trained: TrainedRefiner | None = None
    """None for a recipe."""

    def probe(self, *, noise_frac: float = 0.1) -> Refiner:
        """A float64 copy with few cycles, whose every weight is moved a little: a halting head
        that starts at 0 would otherwise give all puzzles the same score."""
        model = self.build().double()
        generator = new_generator(1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                rms = parameter.square().mean().sqrt()
                size = torch.where(rms > 0, rms, model.cfg.d_model**-0.5)
                parameter.add_(noise_frac * noise * size)
            if model.q_head is not None and not bool(model.q_head.weight.abs().max() > 0.05):
                shape = model.q_head.weight.shape
                model.q_head.weight.copy_(torch.randn(shape, generator=generator))
        model.cfg = shallow(model.cfg)
        return model.eval()

    def objective(self, model: Refiner, *, batch_size: int = N_ROWS) -> Refinement:
        """The objective that training uses, on made-up puzzles."""
        return Refinement(
            model,
            MadeUpPuzzles(model.cfg),
            batch_size=batch_size,
            seed=0,
            loss_type=self.loss_type,
        )


@dataclass(frozen=True)
class RefinerCheck:
    """One entry of the table of checks."""

    name: str
    question: str
    """What a pass answers with yes."""
    run: Callable[[RefinerContext], Finding]


class MadeUpPuzzles:
    """Random questions and answers, other ones at every position; row i lacks i % 4 labels."""

    def __init__(self, cfg: RefinerConfig) -> None:
        self.cfg = cfg

    def batch(self, position: int, n: int) -> Puzzles:
        low, high = min(1, self.cfg.vocab_size - 1), self.cfg.vocab_size
        rows = [np.random.default_rng(position + i) for i in range(n)]
        tokens = np.stack([rng.integers(low, high, (2, self.cfg.length)) for rng in rows])
        inputs, labels = tokens.astype(np.uint8).transpose(1, 0, 2).copy()
        for i in range(n):
            labels[i, : (position + i) % 4] = 0
        return Puzzles(inputs, labels, inputs == labels)


def shallow(cfg: RefinerConfig) -> RefinerConfig:
    """The same refiner with at most two updates of z_L in one or two cycles."""
    cycles = {"H_cycles": min(cfg.H_cycles, 2), "L_cycles": min(cfg.L_cycles, 2)}
    return cfg.model_copy(update={**cycles, "grad_cycles": min(cfg.grad_cycles, 2)})


def questions(model: Refiner, position: int, n: int = N_ROWS) -> Tensor:
    """(n, L) made-up questions."""
    return torch.from_numpy(MadeUpPuzzles(model.cfg).batch(position, n).inputs).long()


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value of both."""
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    scale = max(a.abs().max().item(), b.abs().max().item())
    return (a - b).abs().max().item() / scale if scale else 0.0
