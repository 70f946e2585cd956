"""Answers from a trained refiner: segment after segment, each puzzle until it is done.

Shapes: n puzzles, L positions, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.nn.recursion.halting import EPSILON, HaltingConfig, halt_score
from mixlab.nn.recursion.refiner import Refiner, RefinerState


class Solutions(NamedTuple):
    """One answer per puzzle."""

    answers: Tensor  # (n, L) int64
    steps: Tensor  # (n,) int64, segments that were run
    scores: Tensor  # (n,) what the halting head thinks of the answer, as a logit; 0 without a head


class Step(NamedTuple):
    """Every puzzle after one more segment."""

    logits: Tensor  # (n, L, V)
    score: Tensor  # (n,) the exit score
    heads: Tensor | None  # (n, 1 or 2) logits of the halting head in this segment
    state: RefinerState


class Refining:
    """Puzzles under way; `advance` runs one segment on those that are left."""

    def __init__(self, model: Refiner, inputs: Tensor, noise: Tensor | None = None) -> None:
        """`noise` (n, D) is added to both first states, for another try at the same puzzle."""
        self.model, self.inputs = model, inputs
        self.state = model.initial_state(inputs)
        if noise is not None:
            shift = noise[:, None].to(self.state.z_H.dtype)
            self.state = RefinerState(self.state.z_H + shift, self.state.z_L + shift)
        self._n_done = 0  # segments
        self._spent = torch.zeros(len(inputs), device=inputs.device)  # halting probability so far
        self._mean: Tensor | None = None  # of the answers, weighted by it (act)

    def advance(self) -> Step:
        """One segment on every row that is left."""
        out = self.model(self.state, self.inputs)
        self.state, self._n_done = out.state, self._n_done + 1
        halting, logits = self.model.cfg.halting, out.logits
        if out.halt_logits is None:
            nothing = torch.zeros(len(logits), device=logits.device)
            return Step(logits, nothing, None, out.state)
        if not halting.unrolls:
            score = halt_score(halting, out.halt_logits)
            return Step(logits, score, out.halt_logits, out.state)
        h = out.halt_logits[:, 0].sigmoid() * (self._n_done >= halting.halt_min_steps)
        left = 1 - self._spent
        if halting.kind == "act":
            seen = torch.zeros_like(logits) if self._mean is None else self._mean
            self._mean = seen + torch.minimum(h, left)[:, None, None] * logits
            logits = seen + left[:, None, None] * logits  # as if it ended here
            self._spent = (self._spent + h).clamp(max=1.0)
        else:
            self._spent = self._spent + left * h
        return Step(logits, self._spent.logit(eps=EPSILON), out.halt_logits, out.state)

    def keep(self, rows: Tensor) -> None:
        """Drop all but `rows` (bool), which are done: nothing is computed for the others."""
        self.inputs = self.inputs[rows]
        self.state = RefinerState(self.state.z_H[rows], self.state.z_L[rows])
        self._spent = self._spent[rows]
        self._mean = None if self._mean is None else self._mean[rows]


@torch.no_grad()
def solve(
    model: Refiner,
    inputs: Tensor,
    *,
    max_steps: int | None = None,
    exit_threshold: float | None = None,
    noise: Tensor | None = None,
) -> Solutions:
    """Refine every puzzle for `max_steps` segments, or until its exit score is above the threshold.

    A puzzle that exits leaves the batch; the others go on as if it had never been there.
    """
    halting = model.cfg.halting
    n_steps = max_steps or halting.halt_max_steps
    n = len(inputs)
    under_way = Refining(model, inputs, noise)
    index = torch.arange(n, device=inputs.device)
    answers = torch.zeros_like(inputs)
    steps = torch.zeros(n, dtype=torch.int64, device=inputs.device)
    scores = torch.zeros(n, device=inputs.device)
    for number in range(1, n_steps + 1):
        step = under_way.advance()
        is_done = torch.full_like(index, number == n_steps, dtype=torch.bool)
        if exit_threshold is not None and number >= halting.halt_min_steps and _has_head(halting):
            is_done |= step.score > exit_threshold
        done = index[is_done]
        answers[done] = step.logits.argmax(dim=-1)[is_done]
        steps[done] = number
        scores[done] = step.score[is_done].to(scores.dtype)
        index = index[~is_done]
        if len(index) == 0:
            break
        under_way.keep(~is_done)
    return Solutions(answers, steps, scores)


@torch.no_grad()
def solve_by_rollouts(
    model: Refiner,
    inputs: Tensor,
    *,
    num_rollouts: int,
    rollout_noise_std: float,
    seed: int,
    max_steps: int | None = None,
    exit_threshold: float | None = None,
) -> Solutions:
    """The best of several tries by the halting head: one clean, the others from noisy states.

    `steps` counts the segments of all tries.
    """
    best = solve(model, inputs, max_steps=max_steps, exit_threshold=exit_threshold)
    steps = best.steps
    for rollout in range(1, num_rollouts):
        generator = torch.Generator().manual_seed((seed << 16) + rollout)
        noise = torch.randn(len(inputs), model.cfg.d_model, generator=generator)
        tried = solve(
            model, inputs, max_steps=max_steps, exit_threshold=exit_threshold,
            noise=rollout_noise_std * noise.to(inputs.device),
        )  # fmt: skip
        steps = steps + tried.steps
        is_better = tried.scores > best.scores
        best = Solutions(
            torch.where(is_better[:, None], tried.answers, best.answers),
            steps,
            torch.where(is_better, tried.scores, best.scores),
        )
    return best._replace(steps=steps)


def _has_head(halting: HaltingConfig) -> bool:
    return halting.n_logits > 0
