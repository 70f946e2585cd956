"""Answer refinement: deep supervision over a carry whose examples stay until they halt.

Every update runs one segment on the whole batch. A row whose example has halted takes the next
one and starts from the first state; the other rows go on with theirs. So a batch holds examples at
different segments, and the batch never waits for its slowest example.

Source: HRM [arXiv:2506.21734], TRM [arXiv:2510.04871].
Shapes: B batch, L positions, D width of the states, N segments.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixlab.nn.recursion.halting import (
    HaltingConfig,
    act_weights,
    continue_target,
    head_losses,
    least_steps,
    ponder_divergence,
    ponder_weights,
    wants_halt,
)
from mixlab.nn.recursion.refiner import Refiner, RefinerState, Segment
from mixlab.ops.stablemax import label_nats
from mixlab.training import phases
from mixlab.training.language_modelling import autocast
from mixlab.training.objective import StepMetrics, total_grad_norm
from mixlab.training.prefetch import Ahead

PAD = 0
"""The label of positions that nothing is asked of."""


class Stream(Protocol):
    """Examples by position; `batch` gives arrays inputs, labels (n, L) and given (n, L)."""

    def batch(self, position: int, n: int) -> tuple: ...


class Carry(NamedTuple):
    """What belongs to the examples in the batch, one row each."""

    z_H: Tensor
    z_L: Tensor
    steps: Tensor  # (B,) int64, segments done
    halted: Tensor  # (B,) bool, to be replaced before the next segment
    least: Tensor  # (B,) int64, segments that exploration asks of this example
    inputs: Tensor  # (B, L) int64
    labels: Tensor  # (B, L) int64
    given: Tensor  # (B, L) bool


class SegmentLoss(NamedTuple):
    """The loss of one segment with the figures that go with it."""

    loss: Tensor  # (B,) what is minimized, without auxiliary losses
    lm_loss: Tensor  # (B,) nats, mean over the row's labels
    heads: dict[str, Tensor]  # (B,) losses of the halting head, unweighted
    right: Tensor  # (B, L) bool, true where nothing is asked
    segment: Segment


class Refinement:
    """The objective of a refiner: one segment per update, or all of them where halting asks it."""

    def __init__(
        self,
        model: Refiner,
        stream: Stream,
        *,
        batch_size: int,
        seed: int,
        loss_type: str = "softmax",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self._batch_size = batch_size
        self._loss_type, self._compute_dtype = loss_type, compute_dtype
        self.carry: Carry | None = None  # None: every row waits for its first example
        self._device = model.embed_tokens.device
        # A function of its own: a method would tie the model into a cycle, which outlives its use.
        draw = partial(_draw, stream, model.cfg.halting, batch_size, seed, self._device)
        self._ahead = Ahead(draw, batch_size, self._device)

    # --- the contract ---------------------------------------------------------------------------

    def accumulate(self, position: int) -> StepMetrics:
        if self.model.cfg.halting.unrolls:
            return self._unrolled(position)
        carry = self._admit(position)
        result = self._segment_loss(carry)
        self._backward(result.loss.mean(), result.segment.aux_loss)
        self.carry, wants = self._next(carry, result)
        figures = _figures(result, self.carry, wants)
        return self._metrics(result.lm_loss.mean(), result.segment.aux_loss, figures)

    def after_update(self) -> None:
        self.model.update_balance()

    def state_tensors(self) -> dict[str, Tensor]:
        return {} if self.carry is None else dict(self.carry._asdict())

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        device = self.model.embed_tokens.device
        self.carry = None
        if tensors:
            self.carry = Carry(**{name: t.to(device, copy=True) for name, t in tensors.items()})

    def close(self) -> None:
        self._ahead.close()

    # --- one segment ----------------------------------------------------------------------------

    def _admit(self, position: int) -> Carry:
        """The carry with new examples from `position` on in every row that has halted."""
        fresh = self.fresh(position)
        if self.carry is None:
            return fresh
        halted = self.carry.halted
        return Carry(
            *(
                torch.where(halted.view(-1, *[1] * (new.dim() - 1)), new, old)
                for new, old in zip(fresh, self.carry, strict=True)
            )
        )

    def fresh(self, position: int) -> Carry:
        """Rows that have just taken the examples from `position` on."""
        model, n = self.model, self._batch_size
        device = self._device
        inputs, labels, given, least = (
            tensor.to(device, non_blocking=True) for tensor in self._ahead.take(position)
        )
        inputs = inputs.long()
        with torch.no_grad():
            state = model.initial_state(inputs)
        dtype = self._compute_dtype or state.z_H.dtype  # the dtype that segments give them
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        return Carry(
            state.z_H.to(dtype).contiguous(),
            state.z_L.to(dtype).contiguous(),
            zeros,
            zeros.bool(),
            least,
            inputs,
            labels.long(),
            given,
        )

    def _segment_loss(self, carry: Carry) -> SegmentLoss:
        """Run one segment from the carry; nothing is added up yet."""
        model, halting = self.model, self.model.cfg.halting
        phases.begin("forward")
        with autocast(carry.z_H.device, self._compute_dtype):
            segment = model(self._begin(carry), carry.inputs)
        lm_loss = row_nats(segment.logits, carry.labels, self._loss_type)
        right = (segment.logits.argmax(dim=-1) == carry.labels) | (carry.labels == PAD)
        heads: dict[str, Tensor] = {}
        if segment.halt_logits is not None and not halting.unrolls:
            target = self._continue_target(carry, segment) if halting.n_logits == 2 else None
            heads = head_losses(halting, segment.halt_logits, right.all(dim=1), target)
        loss = lm_loss
        for head_loss in heads.values():
            loss = loss + halting.halt_loss_weight * head_loss
        return SegmentLoss(loss, lm_loss, heads, right, segment)

    def _begin(self, carry: Carry) -> RefinerState:
        """The states of the carry; first states anew where they have a gradient to learn from."""
        state = RefinerState(carry.z_H, carry.z_L)
        if self.model.cfg.state_init not in ("learned", "input"):
            return state
        first = self.model.initial_state(carry.inputs)
        is_new = (carry.steps == 0)[:, None, None]
        return RefinerState(*(torch.where(is_new, a, b) for a, b in zip(first, state, strict=True)))

    @torch.no_grad()
    def _continue_target(self, carry: Carry, segment: Segment) -> Tensor:
        """Look one segment ahead without gradient."""
        with autocast(carry.z_H.device, self._compute_dtype):
            ahead = self.model(segment.state.detach(), carry.inputs)
        return continue_target(self.model.cfg.halting, ahead.halt_logits, carry.steps + 2)

    @torch.no_grad()
    def _next(self, carry: Carry, result: SegmentLoss) -> tuple[Carry, Tensor]:
        """The carry after the segment, and which rows stop by their own wish."""
        halting, state = self.model.cfg.halting, result.segment.state.detach()
        steps = carry.steps + 1
        wants = wants_halt(halting, result.segment.halt_logits, steps, carry.least)
        halted = wants | (steps >= halting.halt_max_steps)
        dtype = carry.z_H.dtype
        carry = carry._replace(
            z_H=state.z_H.to(dtype), z_L=state.z_L.to(dtype), steps=steps, halted=halted
        )
        return carry, wants

    # --- all segments in one update -------------------------------------------------------------

    def _unrolled(self, position: int) -> StepMetrics:
        """One update on new examples, whose segments share the gradient of their weights."""
        halting, carry = self.model.cfg.halting, self.fresh(position)
        results: list[SegmentLoss] = []
        aux_losses = []
        for _ in range(halting.halt_max_steps):
            result = self._segment_loss(carry)
            carry, _ = self._next(carry, result)
            results.append(result)
            aux_losses.append(result.segment.aux_loss)
        logits = torch.cat([r.segment.halt_logits for r in results], dim=1)  # (B, N)
        if halting.kind == "act":
            weights, cost = act_weights(logits)
            mean = sum(
                w[:, None, None] * r.segment.logits
                for w, r in zip(weights.unbind(1), results, strict=True)
            )
            answer_loss = row_nats(mean, carry.labels, self._loss_type)
            penalty = halting.act_penalty * cost
        else:
            weights = ponder_weights(logits)
            answer_loss = (weights * torch.stack([r.lm_loss for r in results], dim=1)).sum(dim=1)
            penalty = halting.ponder_weight * ponder_divergence(weights, halting.ponder_prior)
        aux_loss = None if aux_losses[0] is None else torch.stack(aux_losses).mean()
        self._backward((answer_loss + penalty).mean(), aux_loss)
        steps = torch.arange(1, halting.halt_max_steps + 1, device=logits.device)
        last = results[-1]
        figures = {
            **_accuracies(last.right, carry, torch.ones_like(carry.halted)),
            "train/reasoning_steps": (weights * steps).sum(dim=1).mean().detach(),
            "q_halt_mean": logits.detach().sigmoid().mean(),
            "act_penalty": penalty.mean().detach(),
        }
        return self._metrics(answer_loss.mean(), aux_loss, figures)

    # --- shared ---------------------------------------------------------------------------------

    def _backward(self, loss: Tensor, aux_loss: Tensor | None) -> None:
        phases.begin("backward")
        (loss if aux_loss is None else loss + aux_loss).backward()

    def _metrics(
        self, loss_nats: Tensor, aux_loss: Tensor | None, figures: dict[str, Tensor]
    ) -> StepMetrics:
        return StepMetrics(
            loss_nats=loss_nats.detach(),
            grad_norm=total_grad_norm(self.model),
            n_targets=self._batch_size * self.model.cfg.length,
            aux_loss=None if aux_loss is None else aux_loss.detach(),
            layers={},
            n_examples=self._batch_size,
            figures=figures,
        )


def _draw(
    stream: Stream,
    halting: HaltingConfig,
    n: int,
    seed: int,
    device: torch.device,
    position: int,
) -> list[Tensor]:
    """inputs, labels, given and least steps of `n` examples, on the CPU."""
    made = [torch.from_numpy(array) for array in stream.batch(position, n)]
    generator = torch.Generator().manual_seed((seed << 31) ^ position)
    made.append(least_steps(halting, n, generator))
    return [tensor.pin_memory() for tensor in made] if device.type == "cuda" else made


def explicit_loop(objective: Refinement, position: int, n_steps: int) -> Iterator[SegmentLoss]:
    """The reference form: the same examples, segment after segment, with gradients added up.

    The caller may update the weights between two segments, as deep supervision does. What the
    carry scheduler computes for an example must equal this.
    """
    carry = objective.fresh(position)
    for _ in range(n_steps):
        result = objective._segment_loss(carry)
        result.loss.mean().backward()
        carry, _ = objective._next(carry, result)
        yield result


def row_nats(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """(B,) mean nats over the labels of each row; (B, L, V) logits, (B, L) labels, PAD left out."""
    asked = labels != PAD
    nats = label_nats(logits, labels, loss_type)
    return torch.where(asked, nats, 0).sum(dim=1) / asked.sum(dim=1).clamp(min=1)


def _accuracies(right: Tensor, carry: Carry, rows: Tensor) -> dict[str, Tensor]:
    """Means over the chosen rows; 0 where there are none, so read them with `count`."""
    asked = carry.labels != PAD
    blank = asked & ~carry.given
    n_rows = rows.sum().clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(rows, values, 0).sum() / n_rows

    return {
        "count": rows.sum(),
        "accuracy": mean((right & asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)),
        "blank_accuracy": mean((right & blank).sum(dim=1) / blank.sum(dim=1).clamp(min=1)),
        "exact_accuracy": mean(right.all(dim=1).to(torch.float32)),
    }


@torch.no_grad()
def _figures(result: SegmentLoss, carry: Carry, wants: Tensor) -> dict[str, Tensor]:
    """Figures of one update of the carry scheduler, still on the device."""
    halted, n = carry.halted, len(carry.halted)
    figures = _accuracies(result.right, carry, halted)
    count = figures["count"].clamp(min=1)
    figures["train/reasoning_steps"] = torch.where(halted, carry.steps, 0).sum() / count
    figures["halt_rate"] = halted.sum() / n
    figures["halt_rate_learned"] = wants.sum() / n
    figures["forced_halt_rate"] = (halted & ~wants).sum() / count
    figures.update({name: loss.mean() for name, loss in result.heads.items()})
    logits = result.segment.halt_logits
    if logits is not None:
        figures["q_halt_mean"] = logits[:, 0].sigmoid().mean()
        agrees = (halt_score_sign(logits)) == result.right.all(dim=1)
        figures["q_halt_accuracy"] = agrees.to(torch.float32).mean()
        if logits.shape[1] == 2:
            figures["q_continue_mean"] = logits[:, 1].sigmoid().mean()
    return figures


def halt_score_sign(logits: Tensor) -> Tensor:
    """(B,) bool: the head calls the answer right."""
    return logits[:, 0] >= 0
