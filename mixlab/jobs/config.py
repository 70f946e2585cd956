"""The whole config of one run, and how a recipe becomes one."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixlab.core.config import Config, Tree, decode, to_tree
from mixlab.core.errors import ConfigError, Rule
from mixlab.core.recipes import load_recipe
from mixlab.data.config import DataConfig
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.nn.recursion.refiner import RefinerConfig
from mixlab.tasks.prepare import TaskDataConfig
from mixlab.training.config import CheckpointConfig, EvalConfig, SampleConfig, TrainConfig
from mixlab.training.mirrors import MIRRORS


class LogConfig(Config):
    """Where the figures go besides the run folder."""

    mirrors: tuple[MIRRORS.annotation(), ...] = ()  # type: ignore[valid-type]
    """Trackers that get a copy of every figure; when one fails, the run goes on without it."""


Checks = Annotated[
    Literal["quick", "off"],
    # YAML reads a bare `off` as false.
    BeforeValidator(lambda value: "off" if value is False else value),
]


class RunConfig(Config):
    """Everything that decides what a run computes, and nothing else."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder; letters, digits, '.', '_' and '-'."""
    kind: Literal["language_model"] = "language_model"
    """What the run is about: next-token prediction."""
    about: str = ""
    """Where the recipe comes from, what is known about it, what is uncertain."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Decides initial weights, order of the data, dropout, and samples."""
    data: DataConfig
    """Which text, how it is split, cut into tokens and into sequences."""
    model: LanguageModelConfig
    """What is trained."""
    train: TrainConfig
    """How it is trained."""
    eval: EvalConfig = EvalConfig()
    """How it is measured."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept."""
    sample: SampleConfig = SampleConfig()
    """What it writes at the end."""
    log: LogConfig = LogConfig()
    """Who else is told."""
    checks: Checks = "quick"
    """Before training, look in seconds whether the model is causal and sound; off: do not."""

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        if self.data.seq_len > self.model.max_seq_len:
            raise Rule(
                "data.seq_len", self.data.seq_len,
                f"at most model.max_seq_len = {self.model.max_seq_len}",
            )  # fmt: skip
        wanted = getattr(self.data.tokenizer, "vocab_size", None)
        if wanted is not None and wanted > self.model.vocab_size:
            raise Rule(
                "data.tokenizer.vocab_size", wanted,
                f"at most model.vocab_size = {self.model.vocab_size}",
                "Every token needs a row of the embedding.",
            )  # fmt: skip
        if self.data.chat is not None and self.data.chat.prefix_lm:
            self._require_both_ways()
        return self

    def _require_both_ways(self) -> None:
        for name, block in self.model.blocks.items():
            if not block.sequence_mixer.reads_both_ways:
                raise Rule(
                    "data.chat.prefix_lm", True,
                    "sequence mixers that can read a prompt both ways (attention, mla), but "
                    f"model.blocks.{name} has {block.sequence_mixer.kind}, which only reads "
                    "forwards",
                    "Set data.chat.prefix_lm=false.",
                )  # fmt: skip

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update; among examples of question and answer not all are targets."""
        return self.train.batch_size * self.data.seq_len


class InferenceConfig(Config):
    """How puzzles are solved after training."""

    exit_max_drop: float = Field(default=0.002, ge=0.0, le=1.0)
    """Share of the validation puzzles that early exit may cost; it chooses the exit threshold."""
    exit_threshold: float | None = None
    """Exit score above which a puzzle is done; absent: chosen on the validation puzzles."""
    num_rollouts: int = Field(default=1, ge=1, le=1000)
    """Tries per puzzle, of which the halting head picks one."""
    rollout_noise_std: float = Field(default=0.5, ge=0.0)
    """Noise on the first states of every try but the first."""


class RefineRunConfig(Config):
    """Everything that decides what a run of answer refinement computes, and nothing else."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder; letters, digits, '.', '_' and '-'."""
    kind: Literal["refine"]
    """What the run is about: puzzles whose whole answer is given at once and improved."""
    about: str = ""
    """Where the recipe comes from, what is known about it, what is uncertain."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Decides initial weights, order of the puzzles, their symmetries, and exploration."""
    data: TaskDataConfig
    """Which puzzles."""
    model: RefinerConfig
    """What is trained, how deep it recurses, and when it halts."""
    train: TrainConfig
    """How it is trained; a step is one segment of every puzzle in the batch."""
    loss_type: Literal["softmax", "stablemax"] = "softmax"
    """How logits become probabilities in the loss."""
    eval: EvalConfig = EvalConfig()
    """When it is measured; `n_tokens` has no part in it, since all validation puzzles are."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept."""
    inference: InferenceConfig = InferenceConfig()
    """How puzzles are solved in the end."""
    log: LogConfig = LogConfig()
    """Who else is told."""
    checks: Checks = "quick"
    """Before training, look in seconds whether batch mates are independent; off: do not."""

    @field_validator("train")
    @classmethod
    def _compiles_when_told(cls, train: TrainConfig) -> TrainConfig:
        # Small refiners are trained in seconds: compiling pays in long runs only.
        return train.model_copy(update={"compile": train.compile is True})

    @model_validator(mode="after")
    def _fits(self) -> "RefineRunConfig":
        task = self.data.task
        if self.model.vocab_size != task.vocab_size:
            raise Rule(
                "model.vocab_size", self.model.vocab_size,
                f"the {task.vocab_size} tokens of {task.name}",
            )  # fmt: skip
        if tuple(self.model.grid) != tuple(task.shape):
            raise Rule(
                "model.grid", list(self.model.grid),
                f"the {list(task.shape)} rows and columns of {task.name}",
            )  # fmt: skip
        if self.train.parallel == "fsdp":
            raise Rule(
                "train.parallel", "fsdp", "ddp or auto: a refiner's weights are shared by all of "
                "its depth, and small", "Leave it out.",
            )  # fmt: skip
        if self.train.n_micro_batches != 1:
            raise Rule(
                "train.micro_batch_size", self.train.micro_batch_size,
                "nothing: the carry belongs to the whole batch", "Lower train.batch_size instead.",
            )  # fmt: skip
        for key in ("memory", "activation_checkpointing"):
            if getattr(self.train, key):
                raise Rule(
                    f"train.{key}", getattr(self.train, key),
                    "nothing: a refiner keeps the activations of its last cycle only, and its "
                    "carry belongs to the whole batch", "Lower train.batch_size instead.",
                )  # fmt: skip
        return self

    @property
    def tokens_per_step(self) -> int:
        """Labels of one update."""
        return self.train.batch_size * self.model.length


AnyRunConfig = RunConfig | RefineRunConfig
KINDS: dict[str, type[Config]] = {"language_model": RunConfig, "refine": RefineRunConfig}


def decode_config(tree: Tree) -> AnyRunConfig:
    """Validate a config of either kind.

    Raises:
        ConfigError: the first thing wrong.
    """
    kind = tree.get("kind", "language_model")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError("kind", kind, f"one of {', '.join(KINDS)}")
    return decode(KINDS[kind], tree)


def load_config(name_or_file: str, overrides: Sequence[str] = ()) -> AnyRunConfig:
    """The config of a packaged recipe or a YAML file with `key=value` overrides.

    Raises:
        LabError: an unknown recipe, key, kind or value; the message names the nearest right one.
    """
    return decode_config(load_recipe(name_or_file, overrides))


def config_tree(config: AnyRunConfig) -> Tree:
    """The config as plain data, ready for YAML."""
    return to_tree(config)
