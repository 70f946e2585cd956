"""Answer refinement: deep supervision over a carry whose examples stay until they halt.

Every update runs one segment on the whole batch. A row whose example has halted takes the next
one and starts from the first state; the other rows go on with theirs. So a batch holds examples at
different segments, and the batch never waits for its slowest example.

Source: HRM [arXiv:2506.21734], TRM [arXiv:2510.04871].
Shapes: B batch, L positions, D width of the states, N segments.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol
from weakref import WeakMethod

import torch
from torch import Tensor

from mixlab.nn.recursion.halting import (
    HaltingConfig,
    act_weights,
    continue_target,
    from_the_minimum,
    head_losses,
    least_steps,
    ponder_divergence,
    ponder_weights,
    wants_halt,
)
from mixlab.nn.recursion.refiner import Refiner, RefinerState, Segment
from mixlab.parallel import ALONE, World
from mixlab.training import phases
from mixlab.training.carry import PAD, Carry, Examples, SegmentLoss
from mixlab.training.cuda_graphs import Replayer
from mixlab.training.gradient_sums import GradientSums
from mixlab.training.language_modelling import autocast
from mixlab.training.objective import StepMetrics, total_grad_norm
from mixlab.training.prefetch import Ahead
from mixlab.training.rank_figures import add_up_expert_counts, over_ranks
from mixlab.training.refinement_figures import (
    accuracies,
    means_over_ranks,
    row_nats,
    segment_figures,
    shares_of_ranks,
)


class Stream(Protocol):
    """Examples by position; `batch` gives arrays inputs, labels (n, L) and given (n, L)."""

    def batch(self, position: int, n: int) -> tuple: ...


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
        world: World = ALONE,
        cuda_graphs: Literal["auto"] | bool = "auto",
    ) -> None:
        self.model = model
        self._batch_size, self._rows = batch_size, world.share(batch_size)
        self._sums = GradientSums(model, world)
        self._loss_type, self._compute_dtype = loss_type, compute_dtype
        self.carry: Carry | None = None  # None: every row waits for its first example
        self._device = model.embed_tokens.device
        # A function of its own: a method would tie the model into a cycle, which outlives its use.
        draw = partial(_draw, stream, model.cfg.halting, batch_size, self._rows, seed, self._device)
        self._ahead = Ahead(draw, batch_size, self._device)
        self._replay: Replayer | None = None
        # Only when told: with the larger of the recipes, launching does not limit.
        if self._device.type == "cuda" and world.size == 1 and cuda_graphs is True:
            self.replay_by(partial(Replayer, always=True))

    # --- the contract ---------------------------------------------------------------------------

    def accumulate(self, position: int) -> StepMetrics:
        """Tensors of the metrics hold until the next call."""
        run = self._replay or self._update
        return run([self._ahead.take(position)])

    def replay_by(self, make: Callable[..., Replayer]) -> None:
        """Let updates be replayed; `make` takes what runs one, and the parameters."""
        method = WeakMethod(self._update)  # held firmly, it would keep the model after its use

        def run(inputs: Sequence[Examples]) -> StepMetrics:
            update = method()
            assert update is not None
            return update(inputs)

        self._replay = make(run, [p for p in self.model.parameters() if p.requires_grad])

    @property
    def launching(self) -> str | None:
        """How updates reach the device, where that was looked at."""
        return None if self._replay is None else self._replay.verdict

    def after_update(self) -> None:
        add_up_expert_counts(self.model, self._sums.world)
        self.model.update_balance()

    def state_tensors(self) -> dict[str, Tensor]:
        if self.carry is None:
            return {}
        world = self._sums.world
        return {name: world.all_rows(rows) for name, rows in self.carry._asdict().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            self.carry = None
            return
        own = slice(self._rows.start, self._rows.stop)
        self._keep(
            Carry(**{name: t[own].to(self._device, copy=True) for name, t in tensors.items()})
        )

    def close(self) -> None:
        self._ahead.close()

    # --- one segment ----------------------------------------------------------------------------

    def _update(self, inputs: Sequence[Examples]) -> StepMetrics:
        """The gradients of one update, which may admit these examples, and its figures."""
        (examples,) = inputs
        if self.model.cfg.halting.unrolls:
            return self._unrolled(examples)
        carry = self._admit(examples)
        result = self._segment_loss(carry)
        self._backward(result.loss.mean(), result.segment.aux_loss)
        carry, wants = self._next(carry, result)
        figures = segment_figures(result, carry, wants)
        self._keep(carry)
        return self._metrics(result.lm_loss.mean(), result.segment.aux_loss, figures)

    @torch.no_grad()
    def _keep(self, carry: Carry) -> None:
        """Make this the carry; where updates are replayed, in the memory that they know."""
        if self._replay is None:
            self.carry = carry
        elif self.carry is None:
            self.carry = Carry(*(part.clone() for part in carry))
        else:
            for part, target in zip(carry, self.carry, strict=True):
                target.copy_(part)

    def _admit(self, examples: Examples) -> Carry:
        """The carry with new examples in every row that has halted."""
        fresh = self._begun(examples)
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
        return self._begun(self._ahead.take(position))

    def _begun(self, examples: Examples) -> Carry:
        """Rows that have just taken these examples."""
        model, n, device = self.model, len(self._rows), self._device
        inputs, labels, given, least = (part.to(device, non_blocking=True) for part in examples)
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

    def _unrolled(self, examples: Examples) -> StepMetrics:
        """One update on new examples, whose segments share the gradient of their weights."""
        halting, carry = self.model.cfg.halting, self._begun(examples)
        results: list[SegmentLoss] = []
        aux_losses = []
        for _ in range(halting.halt_max_steps):
            result = self._segment_loss(carry)
            carry, _ = self._next(carry, result)
            results.append(result)
            aux_losses.append(result.segment.aux_loss)
        logits = torch.cat([r.segment.halt_logits for r in results], dim=1)  # (B, N)
        allowed = from_the_minimum(halting, logits)
        if halting.kind == "act":
            weights, cost = act_weights(allowed)
            mean = sum(
                w[:, None, None] * r.segment.logits
                for w, r in zip(weights.unbind(1), results, strict=True)
            )
            answer_loss = row_nats(mean, carry.labels, self._loss_type)
            penalty = halting.act_penalty * cost
        else:
            weights = ponder_weights(allowed)
            answer_loss = (weights * torch.stack([r.lm_loss for r in results], dim=1)).sum(dim=1)
            penalty = halting.ponder_weight * ponder_divergence(weights, halting.ponder_prior)
        aux_loss = None if aux_losses[0] is None else torch.stack(aux_losses).mean()
        self._backward((answer_loss + penalty).mean(), aux_loss)
        steps = torch.arange(1, halting.halt_max_steps + 1, device=logits.device)
        last = results[-1]
        figures = {
            **accuracies(last.right, carry, torch.ones_like(carry.halted)),
            "train/reasoning_steps": (weights * steps).sum(dim=1).mean().detach(),
            "q_halt_mean": logits.detach().sigmoid().mean(),
            "act_penalty": penalty.mean().detach(),
        }
        return self._metrics(answer_loss.mean(), aux_loss, figures)

    # --- shared ---------------------------------------------------------------------------------

    def _backward(self, loss: Tensor, aux_loss: Tensor | None) -> None:
        """`loss` is the mean over this rank's rows, of which every rank has equally many."""
        phases.begin("backward")
        loss = (loss if aux_loss is None else loss + aux_loss) / self._sums.world.size
        with self._sums.over(is_last=True):
            loss.backward()

    def _metrics(
        self, loss_nats: Tensor, aux_loss: Tensor | None, figures: dict[str, Tensor]
    ) -> StepMetrics:
        world = self._sums.world
        metrics = StepMetrics(
            loss_nats=loss_nats.detach() / world.size,
            grad_norm=total_grad_norm(self.model),
            n_targets=self._batch_size * self.model.cfg.length,
            aux_loss=None if aux_loss is None else aux_loss.detach() / world.size,
            layers={},
            n_examples=self._batch_size,
            figures=shares_of_ranks(figures, world),
        )
        metrics = over_ranks(metrics, world)
        return metrics._replace(figures=means_over_ranks(metrics.figures, world))


def _draw(
    stream: Stream,
    halting: HaltingConfig,
    batch_size: int,
    rows: range,
    seed: int,
    device: torch.device,
    position: int,
) -> Examples:
    """Some rows of the batch from `position` on, pinned where a GPU copies without waiting."""
    made = [torch.from_numpy(a) for a in stream.batch(position + rows.start, len(rows))]
    generator = torch.Generator().manual_seed((seed << 31) ^ position)
    made.append(least_steps(halting, batch_size, generator)[rows.start : rows.stop])
    return Examples(*(t.pin_memory() for t in made) if device.type == "cuda" else made)


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
