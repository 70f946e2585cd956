"""`train.memory`: fit an update into a GPU without changing what it computes.

Two things save memory at the price of time: smaller micro-batches, and computing activations again
in the backward pass. Both are tried on the model itself. The peak of one and of two sequences
gives a line, which predicts the largest micro-batch; that one is run to see whether it fits, and
timed. Where the whole batch does not fit as it is, the faster of the two ways is taken.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mixlab.core.errors import ConfigError, MemoryConfigError
from mixlab.core.units import size
from mixlab.data.synthetic import RandomText
from mixlab.jobs.config import AnyRunConfig, RunConfig
from mixlab.jobs.device import Hardware
from mixlab.jobs.screen import Screen
from mixlab.nn.channel_mixers.moe import MoEConfig
from mixlab.nn.language_model import LanguageModel, build_model
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.training.config import TrainConfig
from mixlab.training.ema import Ema
from mixlab.training.language_modelling import MicroBatch, accumulate_gradients

GB = 2**30
MARGIN = 0.92
"""Share of the memory that is planned with: the allocator leaves gaps, kernels take workspaces."""


class Trial(NamedTuple):
    """What one micro-batch took."""

    n_bytes: int  # most that was allocated at once, weights and optimizer state included
    seconds: float


class Choice(NamedTuple):
    """How an update is cut."""

    micro_batch_size: int
    recomputes: bool
    trial: Trial


Measure = Callable[[int, bool], Trial | None]
"""(sequences, recomputes) -> what it took; None if it did not fit."""


def forget_peak(device: torch.device) -> None:
    """From here on `peak_memory_bytes` counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most of a GPU's memory that was allocated at once since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def limit_memory(train: TrainConfig, hardware: Hardware) -> None:
    """Hold this process to the memory that it is granted, as a smaller card would."""
    if hardware.device.type == "cuda" and isinstance(train.memory, float):
        total = torch.cuda.get_device_properties(hardware.device).total_memory
        share = min(1.0, train.memory * GB / total)
        index = hardware.device.index  # absent where there is no choice
        torch.cuda.set_per_process_memory_fraction(
            share, torch.cuda.current_device() if index is None else index
        )


def fit_memory(config: AnyRunConfig, hardware: Hardware, screen: Screen) -> AnyRunConfig:
    """The config with micro-batches and activation checkpointing that fit; as it is on a CPU.

    Raises:
        ConfigError: not even one sequence fits, or weights are to be shared out among ranks.
    """
    if config.train.memory is None:
        return config
    if hardware.device.type != "cuda":
        screen.note(f"train.memory = {config.train.memory}: limits a GPU and does nothing here.")
        return config
    assert isinstance(config, RunConfig), "other kinds of run refuse the setting"
    if config.train.parallel == "fsdp" and hardware.world.size > 1:
        raise ConfigError(
            "train.memory", config.train.memory, "nothing with train.parallel=fsdp, whose ranks "
            "cannot try by themselves what fits",
            "Set train.micro_batch_size and train.activation_checkpointing.",
        )  # fmt: skip
    limit_memory(config.train, hardware)
    with screen.task("Trying what fits into memory", None), torch.random.fork_rng():
        choice = _Trials(config, hardware).choice() if hardware.world.is_first else None
        free_memory()
    micro, recomputes = hardware.world.tell(None if choice is None else list(choice[:2]))
    if choice is not None:
        screen.note(_told(config, choice))
    changes = {"micro_batch_size": micro, "activation_checkpointing": recomputes}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _told(config: RunConfig, choice: Choice) -> str:
    n = config.train.batch_size // choice.micro_batch_size
    cut = "in one pass" if n == 1 else f"in {n} passes of {choice.micro_batch_size} sequences"
    how = ", activations computed again in the backward pass" if choice.recomputes else ""
    text = f"Memory: an update runs {cut}{how}; {size(choice.trial.n_bytes)} at the peak."
    if n > 1 and has_balance_loss(config):
        text += " The experts' balance loss is then that of each pass, not of the whole batch."
    return text


def has_balance_loss(config: RunConfig) -> bool:
    """Whether part of the loss is a mean over a pass that is not linear in its tokens."""
    mixers = (block.channel_mixer for block in config.model.blocks.values())
    return any(isinstance(m, MoEConfig) and m.n_experts > 1 and m.aux_loss_weight for m in mixers)


def choose(
    measure: Measure, sizes: Sequence[int], budget: float, *, recomputes: bool, whole: bool
) -> Choice | None:
    """The fastest of what fits into `budget` bytes; None if nothing does.

    `sizes` are the micro-batches to choose from, `recomputes` that activations must be computed
    again, `whole` that the largest size counts for more than speed.
    """
    plain = None if recomputes else _largest(measure, sizes, budget, recomputes=False)
    if plain is not None and plain.micro_batch_size == sizes[-1]:
        return plain
    saving = _largest(measure, sizes, budget, recomputes=True)
    if plain is None or saving is None:
        return plain or saving
    if whole and saving.micro_batch_size == sizes[-1]:
        return saving
    return min(plain, saving, key=lambda c: c.trial.seconds / c.micro_batch_size)


def _largest(
    measure: Measure, sizes: Sequence[int], budget: float, *, recomputes: bool
) -> Choice | None:
    """The largest size that fits, predicted from two small ones and then tried."""
    one = measure(1, recomputes)
    if one is None or one.n_bytes > budget:
        return None
    two = measure(2, recomputes) if sizes[-1] > 1 else None
    if two is None or two.n_bytes > budget:
        return Choice(1, recomputes, one)
    per_sequence = max(two.n_bytes - one.n_bytes, 1)
    for n in reversed(sizes):
        if n > 1 and one.n_bytes + per_sequence * (n - 1) > budget:
            continue
        trial = measure(n, recomputes)
        if trial is not None and trial.n_bytes <= budget:
            return Choice(n, recomputes, trial)
    return None


class _Trials:
    """Runs micro-batches of random text through the model of a config."""

    def __init__(self, config: RunConfig, hardware: Hardware) -> None:
        self._config, self._hardware = config, hardware
        self._text = RandomText(config.model.vocab_size, config.data.seq_len, config.seed)

    def choice(self) -> Choice:
        """What to train with.

        Raises:
            ConfigError: nothing fits.
        """
        train, device = self._config.train, self._hardware.device
        share = train.batch_size // self._hardware.world.size
        most = min(train.micro_batch_size or share, share)
        sizes = [n for n in range(1, most + 1) if share % n == 0]
        free, _ = torch.cuda.mem_get_info(device)
        memory = free + torch.cuda.memory_reserved(device)  # what this process can come to hold
        if isinstance(train.memory, float):
            memory = min(memory, train.memory * GB)
        try:
            model, state = self._built(memory)
            found = choose(
                self._measure_with(model),
                sizes,
                MARGIN * memory,
                recomputes=train.activation_checkpointing,
                whole=has_balance_loss(self._config),
            )
            del state
            if found is not None:
                return found
        except torch.OutOfMemoryError:
            pass
        raise ConfigError(
            "train.memory", train.memory,
            f"enough for the model, its optimizer and one sequence; {size(memory)} are not",
            "Lower data.seq_len, model.d_model, model.n_layers or model.vocab_size.",
        )  # fmt: skip

    def _built(self, memory: float) -> tuple[LanguageModel, Any]:
        """The model with gradients, and all else that stays in memory between updates.

        Raises:
            torch.OutOfMemoryError: an optimizer step alone takes more than `memory`.
        """
        train, device = self._config.train, self._hardware.device
        torch.cuda.reset_peak_memory_stats(device)
        model = build_model(self._config.model, self._config.seed).to(device)
        optimizer = train.optimizer.build(model.named_parameters())
        ema = None if train.ema is None else Ema(model.named_parameters(), train.ema.rate)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0.0)
        if torch.cuda.max_memory_allocated(device) > memory:
            raise torch.OutOfMemoryError
        return model.train(), (optimizer, ema)

    def _measure_with(self, model: LanguageModel) -> Measure:
        device = self._hardware.device
        loops = deepest_loops(self._config)

        def run(n: int) -> None:
            batch = MicroBatch.of(self._text.batch(0, n), pinned=True)
            accumulate_gradients(
                model, [batch], compute_dtype=self._hardware.compute_dtype, loops=loops
            )

        def measure(n: int, recomputes: bool) -> Trial | None:
            model.recomputes = recomputes
            try:
                run(n)  # loads and tunes kernels
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                start = time.perf_counter()
                run(n)
                torch.cuda.synchronize(device)
            except torch.OutOfMemoryError:
                return None
            finally:
                free_memory()
            seconds = time.perf_counter() - start
            return Trial(torch.cuda.max_memory_allocated(device), seconds)

        return measure


def deepest_loops(config: RunConfig) -> Loops | None:
    """The loops of an update that takes the most memory; None for a model without loops."""
    recursion = config.model.recursion
    if recursion is None:
        return None
    return Loops(recursion.depth.max_steps, recursion.bp_max_loops, every_exit=True)


def free_memory() -> None:
    """Give back what trials have left."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch was refused memory, on a GPU or by the system."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # A CPU, and a driver that has none left for what PyTorch does not allocate itself.
    return any(words in str(error) for words in ("can't allocate memory", "error: out of memory"))


@contextmanager
def told_of_memory(config: AnyRunConfig) -> Iterator[None]:
    """Within this context a lack of memory is an error of the user's, with the way out."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(config, error) from None


def out_of_memory(config: AnyRunConfig, error: RuntimeError) -> MemoryConfigError:
    """What to tell of an update that did not fit."""
    train = config.train
    if isinstance(config, RunConfig) and train.device == "cpu":
        fix = (
            "Set train.micro_batch_size to a divisor of it: the same update then runs in several "
            "passes. Or lower data.seq_len."
        )
    elif isinstance(config, RunConfig) and train.memory is None:
        fix = (
            "Set train.memory=auto: it cuts the same update into passes that fit. Or lower "
            "train.batch_size or data.seq_len."
        )
    elif isinstance(config, RunConfig):
        fix = "Set train.memory to fewer GB, or lower train.batch_size or data.seq_len."
    else:
        fix = "Lower train.batch_size, or eval.batch_size if it was an evaluation."
    reason = str(error).split(". ")[0].removesuffix(".")
    return MemoryConfigError(
        "train.batch_size", train.batch_size,
        f"an update that fits into memory, but PyTorch says: {reason}", fix,
    )  # fmt: skip
