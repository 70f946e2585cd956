"""A looped model's loss at every depth, and what leaving early costs and saves."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixlab.data.batch import Batch
from mixlab.evals.refinement import auroc, calibration, calibration_error
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel, Trunk
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.packing import Packing

_PIECE = 1024  # tokens whose logits are held at once


class AtDepth(NamedTuple):
    """Means over the targets of a fixed set, every token taking this many steps."""

    steps: int
    loss_nats: float
    accuracy: float


class WithExits(NamedTuple):
    """The same with tokens that leave by the model's rule."""

    exit_threshold: float
    loss_nats: float
    mean_steps: float  # over all tokens
    max_steps: int
    halt_histogram: list[int]  # tokens that took 1, 2, ... steps


class ExitQuality(NamedTuple):
    """Whether the exit rule knows when a token is done, over all tokens and exits but the last.

    A token is done at an exit that predicts what the last exit predicts.
    """

    done_frac: float  # share of (token, exit) pairs that are done
    auroc: float | None  # chance that the rule ranks one that is done above one that is not
    ece: float | None  # of the gate's probability to have stopped; None for a rule without one
    calibration: list[dict[str, float]]  # ten bins of that probability, or of the score's rank


def read_exits(
    model: LanguageModel,
    batches: Iterable[Batch],
    max_steps: int,
    *,
    compute_dtype: torch.dtype | None = None,
) -> tuple[list[AtDepth], ExitQuality | None]:
    """The loss at 1 to `max_steps` steps, and the quality of the exit rule, in one pass.

    The rule is judged at the trained depth, and no token leaves: each exit is looked at with all
    tokens at the same depth. No quality where no token may leave at all. `max_steps` is at least
    the trained depth, and 2.
    """
    assert model.cfg.recursion is not None
    losses = _ByDepth(model, max_steps)
    quality = _Quality(model) if model.cfg.recursion.halting.kind != "fixed" else None

    def add(out: Trunk, targets: Tensor) -> None:
        losses.add(out, targets)
        if quality is not None:
            quality.add(out, targets)

    _run(model, batches, Loops(max_steps, every_exit=True), compute_dtype, add)
    return losses.rows(), None if quality is None else quality.found()


class _ByDepth:
    """Adds up losses and hits at every exit."""

    def __init__(self, model: LanguageModel, max_steps: int) -> None:
        self._model = model
        self._sums = torch.zeros(max_steps, 2, dtype=torch.float64)
        self._n_targets = 0

    def add(self, out: Trunk, targets: Tensor) -> None:
        assert out.loops is not None
        self._n_targets += int((targets != IGNORE).sum())
        for found in out.loops.exits:
            scores = score_tokens(found.h.flatten(0, 1), self._model.head_weight, targets)
            hits = (scores.is_correct & (targets != IGNORE)).double().sum()
            self._sums[found.step - 1] += torch.stack([scores.nats.double().sum(), hits]).cpu()

    def rows(self) -> list[AtDepth]:
        means = (self._sums / self._n_targets).tolist()
        return [AtDepth(i + 1, nats, hits) for i, (nats, hits) in enumerate(means)]


def loss_with_exits(
    model: LanguageModel,
    batches: Sequence[Batch],
    thresholds: Sequence[float],
    *,
    compute_dtype: torch.dtype | None = None,
) -> list[WithExits]:
    """Loss and steps at each threshold of the model's exit rule, at its trained depth."""
    assert model.cfg.recursion is not None
    n_steps, found = model.cfg.recursion.depth.trained_steps, []
    for threshold in thresholds:
        sums = torch.zeros(2, dtype=torch.float64)  # nats, targets
        taken = torch.zeros(n_steps, dtype=torch.int64)

        def add(out: Trunk, targets: Tensor, sums: Tensor = sums, taken: Tensor = taken) -> None:
            assert out.loops is not None and out.loops.n_steps is not None
            nats = score_tokens(out.h.flatten(0, 1), model.head_weight, targets).nats
            is_target = (targets != IGNORE).double().sum()
            sums += torch.stack([nats.double().sum(), is_target]).cpu()
            steps = out.loops.n_steps.flatten().cpu()
            taken += torch.bincount(steps, minlength=n_steps + 1)[1:]

        loops = Loops(may_exit=True, exit_threshold=threshold)
        _run(model, batches, loops, compute_dtype, add)
        nats, n_targets = sums.tolist()
        mean = float((taken * torch.arange(1, n_steps + 1)).sum() / taken.sum())
        found.append(WithExits(threshold, nats / n_targets, mean, n_steps, taken.tolist()))
    return found


def search_threshold(
    measure: Callable[[float], WithExits],
    thresholds: Sequence[float],
    full_loss_nats: float,
    max_rise_nats: float,
) -> tuple[list[WithExits], WithExits | None]:
    """The most eager threshold whose loss rises by at most `max_rise_nats`, if there is one.

    `thresholds` go from eager to careful. The search halves them, as more careful ones cost less
    loss; all that it measured comes back, in that order.
    """
    rows: dict[int, WithExits] = {}
    first, end = 0, len(thresholds)  # the answer is one of these, or `end`
    while first < end:
        middle = (first + end) // 2
        rows[middle] = measure(thresholds[middle])
        if rows[middle].loss_nats - full_loss_nats <= max_rise_nats + 1e-9:
            end = middle
        else:
            first = middle + 1
    return [rows[i] for i in sorted(rows)], rows.get(end)


class _Quality:
    """Collects what the exit rule goes by, and whether further steps change the predicted token."""

    def __init__(self, model: LanguageModel) -> None:
        cfg = model.cfg.recursion
        assert cfg is not None and cfg.halting.kind != "fixed"
        self._model, self._is_gate = model, cfg.halting.kind == "gate"
        self._n_steps = max(2, cfg.depth.trained_steps)
        self._scores: list[Tensor] = []
        self._done: list[Tensor] = []

    def add(self, out: Trunk, targets: Tensor) -> None:
        assert out.loops is not None
        exits, is_target = out.loops.exits[: self._n_steps], (targets != IGNORE).cpu()
        last = _predicted(self._model, exits[-1].h)
        log_going = torch.zeros_like(last, dtype=torch.float32)
        for before, here in itertools.pairwise([None, *exits[:-1]]):
            if self._is_gate:
                assert here.gate_logits is not None
                log_going = log_going + F.logsigmoid(-here.gate_logits.flatten())
                self._scores.append((-torch.expm1(log_going)).cpu()[is_target])
            elif before is None:
                continue  # there is nothing to compare the first output with
            else:
                self._scores.append(-_moved(self._model, before.h, here.h).cpu()[is_target])
            self._done.append((_predicted(self._model, here.h) == last).cpu()[is_target])

    def found(self) -> ExitQuality:
        if not self._scores:  # two steps, and a rule that needs two outputs: no exit to judge
            return ExitQuality(math.nan, None, None, [])
        score = torch.cat(self._scores).double().numpy()
        is_done = torch.cat(self._done).numpy()
        probability = score if self._is_gate else score.argsort().argsort() / len(score)
        return ExitQuality(
            done_frac=float(is_done.mean()),
            auroc=auroc(score, is_done),
            ece=calibration_error(score, is_done) if self._is_gate else None,
            calibration=calibration(probability, is_done),
        )


def shuffled_nats(
    model: LanguageModel,
    batches: Iterable[Batch],
    seed: int,
    *,
    compute_dtype: torch.dtype | None = None,
) -> float:
    """The loss at the trained depth when the input's tokens are shuffled and the targets are not.

    Shuffled over a whole batch: the frequencies of tokens stay, and nothing else does.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for batch in batches:
        order = torch.randperm(batch.tokens.numel(), generator=generator)
        tokens = batch.tokens.flatten()[order].reshape(batch.tokens.shape)
        shuffled.append(batch._replace(tokens=tokens))
    sums = torch.zeros(2, dtype=torch.float64)

    def add(out: Trunk, targets: Tensor) -> None:
        nats = score_tokens(out.h.flatten(0, 1), model.head_weight, targets).nats
        sums.add_(torch.stack([nats.double().sum(), (targets != IGNORE).double().sum()]).cpu())

    _run(model, shuffled, Loops(), compute_dtype, add)
    return float(sums[0] / sums[1])


def _predicted(model: LanguageModel, h: Tensor) -> Tensor:
    """(N,) likeliest tokens, a piece at a time: all logits at once would not fit."""
    weight = model.head_weight.T
    rows = at_least_float32(h.flatten(0, 1)).split(_PIECE)
    return torch.cat([(piece @ weight.to(piece.dtype)).argmax(dim=-1) for piece in rows])


def _moved(model: LanguageModel, before: Tensor, here: Tensor) -> Tensor:
    """(N,) nats between the outputs of two exits, as the rule has them."""
    weight, found = model.head_weight.T, []
    pieces = (at_least_float32(h.flatten(0, 1)).split(_PIECE) for h in (before, here))
    for a, b in zip(*pieces, strict=True):
        old = (a @ weight.to(a.dtype)).log_softmax(dim=-1)
        new = (b @ weight.to(b.dtype)).log_softmax(dim=-1)
        found.append((new.exp() * (new - old)).sum(dim=-1))
    return torch.cat(found)


@torch.no_grad()
def _run(
    model: LanguageModel,
    batches: Iterable[Batch],
    loops: Loops,
    compute_dtype: torch.dtype | None,
    add: Callable[[Trunk, Tensor], None],
) -> None:
    """Give each batch's output and targets to `add`; without dropout, mode put back afterwards."""
    device = model.embed_tokens.weight.device
    with evaluating(model):
        for batch in batches:
            batch = batch.to(device)
            with torch.autocast(
                device.type, dtype=compute_dtype or torch.bfloat16,
                enabled=compute_dtype is not None,
            ):  # fmt: skip
                out = model.trunk(batch.tokens, None, Packing(batch.segments, batch.prefix), loops)
            add(out, batch.targets.flatten())
