"""The whole config of one run, and how a recipe becomes one."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mixlab.core.config import Config, Tree, decode, to_tree
from mixlab.core.errors import Rule
from mixlab.core.recipes import load_recipe
from mixlab.data.config import DataConfig
from mixlab.nn.language_model import LanguageModelConfig
from mixlab.training.config import CheckpointConfig, EvalConfig, SampleConfig, TrainConfig
from mixlab.training.mirrors import MIRRORS


class LogConfig(Config):
    """Where the figures go besides the run folder."""

    mirrors: tuple[MIRRORS.annotation(), ...] = ()  # type: ignore[valid-type]
    """Trackers that get a copy of every figure; when one fails, the run goes on without it."""


class RunConfig(Config):
    """Everything that decides what a run computes, and nothing else."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder; letters, digits, '.', '_' and '-'."""
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
    checks: Literal["quick", "off"] = "quick"
    """Before training, look in seconds whether the model is causal and sound; off: do not."""

    @field_validator("checks", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false

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
        return self

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one update."""
        return self.train.batch_size * self.data.seq_len


def load_config(name_or_file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a packaged recipe or a YAML file with `key=value` overrides.

    Raises:
        LabError: an unknown recipe, key, kind or value; the message names the nearest right one.
    """
    return decode(RunConfig, load_recipe(name_or_file, overrides))


def config_tree(config: RunConfig) -> Tree:
    """The config as plain data, ready for YAML."""
    return to_tree(config)
