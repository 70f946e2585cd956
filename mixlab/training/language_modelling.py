"""Next-token prediction: the objective of every language model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixlab.data.batch import Batch
from mixlab.data.loader import Loader
from mixlab.nn.language_model import LanguageModel, Trunk
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.cross_entropy import linear_cross_entropy
from mixlab.ops.packing import Packing
from mixlab.parallel import ALONE, World
from mixlab.training import phases
from mixlab.training.cuda_graphs import Form, Replayer
from mixlab.training.gradient_sums import GradientSums
from mixlab.training.looped import exit_losses, training_loops, typical_loops
from mixlab.training.objective import StepMetrics, total_grad_norm
from mixlab.training.prefetch import Ahead
from mixlab.training.rank_figures import add_up_expert_counts, over_ranks


class MicroBatch(NamedTuple):
    """What one forward pass reads, on the CPU, with what has to be known of it there."""

    batch: Batch
    n_targets: int
    packing: Packing

    @classmethod
    def of(cls, batch: Batch, *, pinned: bool = False) -> "MicroBatch":
        """A batch made ready; `pinned` puts it where a GPU copies from without waiting."""
        n_targets, packing = batch.n_targets(), Packing(batch.segments, batch.prefix)
        if pinned:
            return cls(batch.pinned(), n_targets, packing.pinned())
        return cls(batch, n_targets, packing)

    # --- for training/cuda_graphs.py ----------------------------------------------------------

    def form(self) -> Form | None:
        packing = self.packing
        if packing.prefix is not None:
            return None  # masks
        room = 0 if packing.is_whole else _room(packing)
        return tuple(self.batch.tokens.shape), self.n_targets, room

    def resident(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.batch.to(device), self.n_targets, self._padded().to(device))

    def write_into(self, resident: "MicroBatch") -> None:
        self._padded().write_into(resident.packing)
        resident.batch.tokens.copy_(self.batch.tokens, non_blocking=True)
        resident.batch.targets.copy_(self.batch.targets, non_blocking=True)

    def _padded(self) -> Packing:
        packing = self.packing
        return packing if packing.is_whole else packing.padded(_room(packing))


def _room(packing: Packing) -> int:
    """Documents that a recorded update has room for where this packing fits."""
    n_documents = len(packing.cu_seqlens_cpu) - 1
    return max(64, 1 << n_documents.bit_length())  # more than there are: one is empty


class Passes(NamedTuple):
    """What this rank's passes of one update gave besides gradients."""

    loss_nats: Tensor  # its share of the mean over the targets of all ranks
    aux_loss: Tensor | None
    layers: dict[str, dict[str, Tensor]]
    figures: dict[str, Tensor]


class LanguageModelling:
    """Windows of text from a loader, cut into micro-batches; keeps nothing between updates."""

    def __init__(
        self,
        model: LanguageModel,
        loader: Loader,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        compute_dtype: torch.dtype | None = None,
        world: World = ALONE,
        loss_backend: str = "auto",
        cuda_graphs: Literal["auto"] | bool = "auto",
    ) -> None:
        self.model = model
        self._loader, self._batch_size = loader, batch_size
        self._sums = GradientSums(model, world)
        self._compute_dtype = compute_dtype
        device = model.embed_tokens.weight.device
        share = world.share(batch_size)
        size = min(micro_batch_size or len(share), len(share))
        # A function of its own: a method would tie the model into a cycle, which outlives its use.
        draw = partial(_draw, loader, share, size, device.type == "cuda")
        self._ahead = Ahead(draw, batch_size, device)
        self._options = {"compute_dtype": compute_dtype, "loss_backend": loss_backend}
        self._run = partial(accumulate_gradients, model, sums=self._sums, **self._options)
        self._replay: Replayer | None = None
        can_replay = model.cfg.recursion is None and (world.size == 1 or self._sums.is_separate)
        if device.type == "cuda" and can_replay and cuda_graphs is not False:
            self.replay_by(partial(Replayer, always=cuda_graphs is True))

    def replay_by(self, make: Callable[..., Replayer]) -> None:
        """Let updates be replayed; `make` takes what runs one, and the parameters."""
        run = self._run
        if self._sums.world.size > 1:
            # Ranks exchange nothing inside a graph, so each may replay or launch as it likes.
            self._total = self.model.embed_tokens.weight.new_ones(())
            run = partial(run_passes, self.model, total=self._total, **self._options)
        self._replay = make(run, [p for p in self.model.parameters() if p.requires_grad])

    @property
    def launching(self) -> str | None:
        """How updates reach the device, where that was looked at."""
        return None if self._replay is None else self._replay.verdict

    def accumulate(self, position: int) -> StepMetrics:
        """Tensors of the metrics hold until the next call."""
        ready = self._ahead.take(position)
        if self._replay is None:
            metrics = self._run(ready, loops=self.loops(position))
        elif self._sums.world.size == 1:
            metrics = self._replay(ready)
        else:
            [n_targets] = self._sums.world.totals(sum(micro.n_targets for micro in ready))
            self._total.fill_(n_targets)
            passes = self._replay(ready)
            self._sums.add_up()
            metrics = step_metrics(self.model, passes, n_targets, self._sums.world)
        return metrics._replace(n_examples=self._batch_size)

    def loops(self, position: int) -> Loops | None:
        """How a looped model loops in the update whose examples begin at `position`."""
        cfg = self.model.cfg.recursion
        if cfg is None:
            return None
        return training_loops(cfg, self._loader.seed, position, position // self._batch_size)

    def after_update(self) -> None:
        add_up_expert_counts(self.model, self._sums.world)
        self.model.update_balance()

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        assert not tensors, "a position is all that language modelling goes on from"

    def close(self) -> None:
        self._ahead.close()


def _draw(loader: Loader, share: range, size: int, pinned: bool, position: int) -> list[MicroBatch]:
    """The micro-batches of `size` of this rank's share of an update, which begins at `position`."""
    starts = range(position + share.start, position + share.stop, size)
    return [MicroBatch.of(loader.batch(start, size), pinned=pinned) for start in starts]


def accumulate_gradients(
    model: LanguageModel,
    micro_batches: Sequence[Batch | MicroBatch],
    *,
    compute_dtype: torch.dtype | None = None,
    trunk: Callable[..., Trunk] | None = None,
    loops: Loops | None = None,
    sums: GradientSums | None = None,
    loss_backend: str = "auto",
) -> StepMetrics:
    """Add the gradients of the mean loss over all target tokens of `micro_batches` (on the CPU).

    The loss is a mean over tokens, not over micro-batches, so cutting the same tokens differently
    gives the same gradient. `compute_dtype` is the dtype of matrix products (None: the
    parameters'); `trunk` stands in for `model.trunk`, such as a compiled form of it. `loops` says
    how a looped model loops; absent, as in a typical update. With `sums` over several ranks, the
    mean is over the targets of all of them, and so are gradients and figures. `loss_backend` is
    that of the last exit's loss, see ops/cross_entropy.
    """
    sums = sums or GradientSums(model, ALONE)
    recursion = model.cfg.recursion
    if recursion is not None and loops is None:
        loops = typical_loops(recursion)
    ready = [b if isinstance(b, MicroBatch) else MicroBatch.of(b) for b in micro_batches]
    [n_targets] = sums.world.totals(sum(micro.n_targets for micro in ready))
    passes = run_passes(
        model, ready, total=n_targets, compute_dtype=compute_dtype, trunk=trunk, loops=loops,
        sums=sums, loss_backend=loss_backend,
    )  # fmt: skip
    metrics = step_metrics(model, passes, n_targets, sums.world)
    if loops is not None and recursion is not None:
        steps = torch.tensor(loops.steps or recursion.depth.trained_steps)
        # Of this update; the loss depends on it.
        metrics = metrics._replace(figures={**metrics.figures, "reasoning_steps": steps})
    return metrics


def run_passes(
    model: LanguageModel,
    ready: Sequence[MicroBatch],
    *,
    total: int | Tensor,
    compute_dtype: torch.dtype | None,
    loss_backend: str,
    trunk: Callable[..., Trunk] | None = None,
    loops: Loops | None = None,
    sums: GradientSums | None = None,
) -> Passes:
    """Forward and backward over every micro-batch, with the loss per target of `total` targets."""
    sums = sums or GradientSums(model, ALONE)
    run_trunk = trunk or model.trunk
    recursion = model.cfg.recursion
    arguments = () if loops is None else (loops,)
    device = model.embed_tokens.weight.device
    loss_sum = torch.zeros((), device=device)
    aux_sum: Tensor | None = None
    layers: dict[str, dict[str, Tensor]] = {}
    figures: dict[str, Tensor] = {}
    for i, micro in enumerate(ready):
        phases.begin("forward")
        batch = micro.batch.to(device)
        with autocast(device, compute_dtype):
            out = run_trunk(batch.tokens, None, micro.packing.to(device), *arguments)
        nats = linear_cross_entropy(
            out.h.flatten(0, 1),  # (B T, D)
            model.head_weight,
            batch.targets.flatten(),
            compute_dtype=compute_dtype,
            backend=loss_backend,
        )
        loss = nats / total
        if recursion is not None:
            exits = exit_losses(model, out, batch, compute_dtype)
            loss = loss + exits.loss / total
            for name, value in exits.figures.items():
                figures[name] = figures.get(name, 0.0) + value / total
        if out.aux_loss is not None:
            aux = out.aux_loss * (micro.n_targets / total)
            loss = loss + aux
            aux_sum = aux.detach() if aux_sum is None else aux_sum + aux.detach()
        phases.begin("backward")
        with sums.over(is_last=i == len(ready) - 1):
            loss.backward()
        loss_sum = loss_sum + nats.detach()
        layers = out.metrics
    return Passes(loss_sum / total, aux_sum, layers, figures)


def step_metrics(model: LanguageModel, passes: Passes, n_targets: int, world: World) -> StepMetrics:
    """The figures of an update over all ranks, whose gradients are summed."""
    loss, aux, layers, figures = passes
    norm = total_grad_norm(model)
    return over_ranks(StepMetrics(loss, norm, n_targets, aux, layers, figures=figures), world)


def autocast(device: torch.device, compute_dtype: torch.dtype | None) -> torch.autocast:
    """Matrix products in `compute_dtype`; None leaves every dtype as it is."""
    dtype = compute_dtype or torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=compute_dtype is not None)
