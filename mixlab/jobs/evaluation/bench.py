"""What measures a trained model: parts with settings, and the bench that they work on.

A part is one file of results. Its settings, with hashes of the files that it reads, say whether an
earlier result still stands.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from mixlab.core.config import Config, to_tree
from mixlab.core.errors import DataError
from mixlab.core.run_dir import RunDir
from mixlab.data.prepare import PreparedData
from mixlab.evals.likelihood import Scorer
from mixlab.evals.scores import Score
from mixlab.jobs.config import RunConfig
from mixlab.jobs.run_tokenizer import at_home
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import prepare_data
from mixlab.jobs.trained import TrainedModel


class Bench:
    """A trained model with what parts need to measure it; the text is prepared when asked for."""

    def __init__(
        self, run: RunDir, config: RunConfig, trained: TrainedModel, screen: Screen
    ) -> None:
        self.run, self.config, self.trained, self.screen = run, config, trained, screen
        is_cuda = trained.model.embed_tokens.weight.device.type == "cuda"
        wants_bf16 = config.train.precision == "bf16" and is_cuda
        self.compute_dtype = torch.bfloat16 if wants_bf16 else None
        eos_id = trained.tokenizer.eos_id
        self.scorer = Scorer(
            trained.model, eos_id, compute_dtype=self.compute_dtype, prefix_lm=trained.prefix_lm
        )

    @cached_property
    def data(self) -> PreparedData:
        return prepare_data(at_home(self.config, self.run.path), self.screen)

    @property
    def trained_len(self) -> int:
        """Tokens of the sequences that the model was trained on."""
        return min(self.config.data.seq_len, self.trained.model.cfg.max_seq_len)

    @property
    def max_len(self) -> int:
        return self.trained.model.cfg.max_seq_len


class Measured(NamedTuple):
    scores: list[Score]
    details: dict[str, Any]  # what a reader of the file may want besides
    notes: list[str]  # what a reader of the table must know


class Part(Config):
    """Base of the parts. `name` is the stem of the file that keeps the result."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        return self.kind

    def identity(self) -> dict[str, Any]:
        """Settings as plain data, with hashes of the files that they name."""
        return {"kind": self.kind, **to_tree(self)}

    def measure(self, bench: Bench) -> Measured:
        raise NotImplementedError(type(self).__name__)


def slug(path: Path) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem).strip("-.")
    return kept[:60] or "file"


def file_hash(path: Path) -> str:
    """Of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
