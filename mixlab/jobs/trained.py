"""A trained model, opened from its run folder: weights, tokenizer, and text out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mixlab.core.config import decode, read_yaml
from mixlab.core.errors import CheckpointError, LabError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.infer.generate import generate_tokens
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.run_tokenizer import open_tokenizer
from mixlab.nn.language_model import LanguageModel, build_model
from mixlab.training import checkpoint as checkpoints
from mixlab.training.optimizers.base import copy_exactly


@dataclass(frozen=True)
class TrainedModel:
    """Weights of one checkpoint with the tokenizer that they were trained with."""

    model: LanguageModel
    tokenizer: Tokenizer
    step: int

    def stream(
        self, prompt: str, *, max_new_tokens: int, sampling: SamplingConfig, seed: int = 0
    ) -> Iterator[str]:
        """The continuation of `prompt`, in pieces of whole characters, as it is drawn.

        Raises:
            LabError: the prompt is empty, too long, or not text.
        """
        if not isinstance(prompt, str):
            raise LabError(f"prompt = {prompt!r}: expected text, such as 'def '.")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LabError(
                f"prompt = {prompt!r}: expected UTF-8 text, which character {error.start} is not."
            ) from None
        tokens = generate_tokens(
            self.model,
            self.tokenizer.encode(prompt),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            eos_id=self.tokenizer.eos_id,
            n_known_tokens=self.tokenizer.vocab_size,
        )
        drawn: list[int] = []
        shown = ""
        for token in tokens:
            drawn.append(token)
            text = self.tokenizer.decode(drawn)
            if text.endswith("\ufffd"):  # the bytes of a character that is not complete yet
                continue
            yield text[len(shown) :]
            shown = text
        rest = self.tokenizer.decode(drawn)[len(shown) :] if drawn else ""
        if rest:
            yield rest

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 120,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> str:
        """The continuation of `prompt` as one text, without the prompt."""
        sampling = sampling or SamplingConfig(top_k=40)
        pieces = self.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        return "".join(pieces)


def open_trained(path: Path | str, which: str | int = "best") -> TrainedModel:
    """Load a model from a run folder.

    `which` is "best", "last" or the step of a kept checkpoint. If the run keeps an average of its
    parameters, that is what is loaded: it is what was evaluated.

    Raises:
        RunError: no such run, or its tokenizer is not the one that it was trained with.
        CheckpointError: no such checkpoint, or it is damaged.
    """
    run = RunDir.open(path)
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RunConfig):
        raise RunError(
            f"run {run.path}: is of kind {config.kind}, which solves puzzles and writes no text. "
            f"Its answers are in {run.report_path.name} and the pictures beside it."
        )
    tokenizer = open_tokenizer(run)
    loaded = checkpoints.load(_find(run, which))
    model = build_model(config.model, config.seed)
    checkpoints.load_module(model, loaded.tensors["model"])
    if "ema" in loaded.tensors:
        copy_exactly(dict(model.named_parameters()), loaded.tensors["ema"], "the averaged weights")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedModel(model.to(device).eval(), tokenizer, loaded.step)


def sampling_of(**settings: float | None) -> SamplingConfig:
    """Settings given one by one, checked.

    Raises:
        ConfigError: a value out of range.
    """
    return decode(SamplingConfig, settings)


def _find(run: RunDir, which: str | int) -> Path:
    folder = run.checkpoints_path
    steps = checkpoints.steps(folder)
    if not steps:
        raise CheckpointError(
            f"run {run.path}: has no checkpoint yet. Go on with it by `mixlab train --resume "
            f"{run.path}`."
        )
    best = checkpoints.read_best(folder)
    if which == "best" and best is not None and best.step in steps:
        return checkpoints.step_path(folder, best.step)
    if which in ("best", "last"):
        return checkpoints.step_path(folder, steps[-1])
    if str(which).isdecimal() and int(which) in steps:
        return checkpoints.step_path(folder, int(which))
    kept = ", ".join(map(str, steps))
    raise CheckpointError(
        f"checkpoint = {which!r}: expected best, last, or the step of a kept checkpoint: {kept}."
    )
