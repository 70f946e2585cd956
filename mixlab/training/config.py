"""How long, how much per update, how fast, and what is kept: the training part of a run."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mixlab.core.config import Config
from mixlab.core.errors import Rule
from mixlab.training.length import Length
from mixlab.training.optimizers import OPTIMIZERS
from mixlab.training.schedule import SCHEDULES, Bridge, ConstantConfig


class EmaConfig(Config):
    """Keep a moving average of the parameters, and evaluate and sample with it."""

    rate: float = Field(default=0.999, gt=0, lt=1)
    """Share of the old average kept at each update."""


class EarlyStoppingConfig(Config):
    """End the run when validation loss has stopped falling."""

    patience: PositiveInt = 3
    """Evaluations without an improvement before the run ends."""
    min_delta: NonNegativeFloat = 0.0
    """Nats by which a loss must fall to count as an improvement."""


class TrainConfig(Config):
    """One optimizer, one schedule, one length. Knows nothing of the model or the data."""

    length: Length
    """Steps, tokens, FLOPs or time: "400 steps", "2M tokens", "1e15 flops", "90 seconds"."""
    batch_size: PositiveInt
    """Sequences of one update."""
    micro_batch_size: PositiveInt | None = None
    """Sequences of one forward pass; a divisor of batch_size. Absent: batch_size."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the rest again in the backward pass."""
    memory: Literal["auto"] | PositiveFloat | None = None
    """Fit the update into a GPU's memory (auto) or into so many GB of it, by lowering
    micro_batch_size and turning activation_checkpointing on; absent: take both as they are."""
    optimizer: OPTIMIZERS.annotation()  # type: ignore[valid-type]
    """Which optimizer, with its learning rate."""
    schedule: SCHEDULES.annotation() = ConstantConfig()  # type: ignore[valid-type]
    """Factor on the learning rate at every step."""
    bridge: Bridge | None = None
    """Written by `mixlab extend`: leads from the parent's learning rate to the new schedule."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this L2 norm over all parameters; null: never."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes an NVIDIA GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: float32 weights, matrix products in bfloat16; auto: where the hardware is fast."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads inside one operation on a CPU; absent: PyTorch's own choice."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """What several processes started by torchrun share: ddp: the work, each with the whole model;
    fsdp: weights, gradients and optimizer state too; auto: ddp."""
    compile: Literal["auto", True, False] = "auto"
    """Compile the blocks with torch.compile: a start of up to a minute, faster steps after; auto:
    a language model on a GPU, where Triton is there to do it."""
    cuda_graphs: Literal["auto", True, False] = "auto"
    """Record an update on a GPU once and replay it; auto: where launching kernels takes longer than
    running them, as it does for small models, or memory is plenty; a refiner only when true."""
    ema: EmaConfig | None = None
    """Average the parameters; absent: no average."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop before the planned length; absent: never."""

    @field_validator("memory", mode="before")
    @classmethod
    def _is_an_amount(cls, value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value in (None, "auto") or (is_number and 0 < value < float("inf")):
            return value
        raise Rule("", value, "auto, a number of GB above 0, or null")

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise Rule("micro_batch_size", micro, f"a divisor of batch_size = {self.batch_size}")
        return self

    @property
    def n_micro_batches(self) -> int:
        """Forward passes of one update."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


class EvalConfig(Config):
    """When and on how much text the validation loss is measured."""

    every: PositiveInt = 100
    """Steps between evaluations; there is always one before the first step and after the last."""
    n_tokens: PositiveInt = 100_000
    """Target tokens of the fixed evaluation set; a smaller split is used whole, and said so."""
    batch_size: PositiveInt = 32
    """Sequences of one forward pass."""
    n_answers: int = Field(default=200, ge=0)
    """Held-out questions that are answered at the end, where the corpus has examples."""


class CheckpointConfig(Config):
    """When the state of the run is saved; the best and the last are always kept."""

    every: PositiveInt = 100
    """Steps between saves; there is always one after the last step and when the run is stopped."""
    keep_every: PositiveInt | None = None
    """Keep the checkpoints of every so many steps for good; absent: best and last only."""


class SampleConfig(Config):
    """Text that the model writes when training ends."""

    n: int = Field(default=3, ge=0)
    """How many texts."""
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """What to continue; absent: the beginnings of validation documents."""
    max_new_tokens: PositiveInt = 80
    """Longest continuation, in tokens."""
    temperature: NonNegativeFloat = 0.8
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: PositiveInt | None = 40
    """Draw from this many likeliest tokens; absent: from all."""
