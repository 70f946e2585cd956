"""A trained model, opened from its run folder: weights, tokenizer, and text out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mixlab.core.config import decode, read_yaml
from mixlab.core.errors import CheckpointError, LabError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.infer.decoding.row_model import RowModel, row_model
from mixlab.infer.engine import Engine, Event, Request
from mixlab.infer.sampler import SamplingConfig
from mixlab.jobs.config import RunConfig, decode_config
from mixlab.jobs.depth import decoding_loops, use_chosen_threshold
from mixlab.jobs.run_tokenizer import open_tokenizer
from mixlab.jobs.standing import is_in_use, last_summary
from mixlab.nn.language_model import LanguageModel, build_model
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.training import checkpoint as checkpoints

DEFAULT_SAMPLING = SamplingConfig(top_k=40)


@dataclass(frozen=True)
class TrainedModel:
    """Weights of one checkpoint with the tokenizer that they were trained with."""

    model: LanguageModel
    tokenizer: Tokenizer
    step: int
    path: Path = Path()
    """The run folder."""
    is_training: bool = False
    """Whether the run goes on, so that these are not its last weights."""
    notes: tuple[str, ...] = ()
    """What somebody who reads its texts should know."""
    loops: Loops | None = None
    """How a looped model loops; absent: to its trained depth, and tokens leave by its exit rule."""
    prefix_lm: bool = False
    """Whether prompts are read with every token seeing every other."""
    precision: torch.dtype | None = None
    """Of matrix products; absent: that of the weights."""

    @property
    def context(self) -> int:
        """Most tokens, prompt and answer together."""
        return self.model.cfg.max_seq_len

    @cached_property
    def _rows(self) -> RowModel:
        return row_model(
            self.model, loops=self.loops, precision=self.precision, prefix_lm=self.prefix_lm
        )

    def engine(self, max_rows: int = 8) -> Engine:
        """Rows of its own for so many texts at once; the weights are shared with other engines."""
        return Engine(self._rows.fresh(), self.tokenizer, max_rows=max_rows)

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt.

        Raises:
            LabError: it is not text.
        """
        if not isinstance(prompt, str):
            raise LabError(f"prompt = {prompt!r}: expected text, such as 'def '.")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LabError(
                f"prompt = {prompt!r}: expected UTF-8 text, which character {error.start} is not."
            ) from None
        return self.tokenizer.encode(prompt)

    def request(
        self, prompt: str | Sequence[int], *, max_new_tokens: int,
        sampling: SamplingConfig = DEFAULT_SAMPLING, seed: int = 0, stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (), window: bool = False,
    ) -> Request:  # fmt: skip
        """A request for an engine; the prompt is text, or tokens."""
        ids = self.encode(prompt) if isinstance(prompt, str) or not _are_ids(prompt) else prompt
        return Request(
            ids, max_new_tokens, sampling, seed, stop=_texts(stop), stop_ids=frozenset(stop_ids),
            window=window,
        )  # fmt: skip

    def events(self, request: Request) -> Iterator[Event]:
        """A request by itself, step by step; its errors come at once."""
        engine = self.engine(max_rows=1)
        engine.add(request)
        return _events(engine)

    def stream(
        self, prompt: str, *, max_new_tokens: int, sampling: SamplingConfig = DEFAULT_SAMPLING,
        seed: int = 0, stop: Sequence[str] = (), window: bool = False,
    ) -> Iterator[str]:  # fmt: skip
        """The continuation of `prompt`, in pieces of whole characters, as it is drawn.

        An empty prompt begins a new document. With `window`, a prompt that is too long loses its
        beginning; else it is an error.

        Raises:
            LabError: the prompt is too long, or not text.
        """
        request = self.request(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop,
            window=window,
        )  # fmt: skip
        return (event.text for event in self.events(request) if event.text)

    def generate(
        self, prompt: str, *, max_new_tokens: int = 120, sampling: SamplingConfig | None = None,
        seed: int = 0, stop: Sequence[str] = (), window: bool = False,
    ) -> str:  # fmt: skip
        """The continuation of `prompt` as one text, without the prompt."""
        pieces = self.stream(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling or DEFAULT_SAMPLING,
            seed=seed, stop=stop, window=window,
        )  # fmt: skip
        return "".join(pieces)

    def generate_many(
        self, prompts: Sequence[str], *, max_new_tokens: int = 120,
        sampling: SamplingConfig | None = None, seed: int = 0, stop: Sequence[str] = (),
        window: bool = False, max_rows: int = 8,
        on_text: Callable[[int, str, bool], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """The continuations of several prompts, `max_rows` of them written at once.

        Each is what `generate` would give. `on_text` hears of every piece: the number of its
        prompt, the text, and whether that was the end.
        """
        engine = self.engine(max_rows)
        requests = [
            self.request(
                prompt, max_new_tokens=max_new_tokens, sampling=sampling or DEFAULT_SAMPLING,
                seed=seed, stop=stop, window=window,
            )
            for prompt in prompts
        ]  # fmt: skip
        places = {engine.add(request): i for i, request in enumerate(requests)}
        texts = [""] * len(requests)
        for event in _events(engine):
            i = places[event.key]
            texts[i] += event.text
            if on_text is not None:
                on_text(i, event.text, event.finish is not None)
        return texts


def _events(engine: Engine) -> Iterator[Event]:
    while engine.n_live or engine.n_waiting:
        for event in engine.step():
            if event.finish == "error":
                raise LabError(f"{event.message}: expected a run whose training did not diverge.")
            yield event


def _are_ids(prompt: object) -> bool:
    return isinstance(prompt, list | tuple) and all(isinstance(i, int) for i in prompt)


def _texts(stop: Sequence[str]) -> tuple[str, ...]:
    is_several = isinstance(stop, Iterable) and not isinstance(stop, str)
    if not is_several or any(not isinstance(text, str) or not text for text in stop):
        raise LabError(
            f"stop = {stop!r}: expected a list of texts that end an answer, none of them empty."
        )
    return tuple(stop)


def open_trained(
    path: Path | str, which: str | int = "best", *, depth: int | None = None,
    threshold: float | None = None,
) -> TrainedModel:  # fmt: skip
    """Load a model from a run folder.

    `which` is "best", "last" or the step of a kept checkpoint. If the run keeps an average of its
    parameters, that is what is loaded: it is what was evaluated. A run that is still training can
    be opened; `notes` say so. `depth` and `threshold` are those of a looped model, see
    `decoding_loops`.

    Raises:
        RunError: no such run, or its tokenizer is not the one that it was trained with.
        CheckpointError: no such checkpoint, or it is damaged.
    """
    run = RunDir.open(path)
    config = decode_config(read_yaml(run.config_path))
    if not isinstance(config, RunConfig):
        raise RunError(
            f"run {run.path}: is of kind {config.kind}, which solves puzzles and writes no text. "
            f"Let it solve some by `mixlab solve {run.path}`."
        )
    tokenizer = open_tokenizer(run)
    is_training = is_in_use(run)
    loaded = _load(run, which, is_training)
    model = build_model(config.model.portable(), config.seed)
    checkpoints.load_evaluated(model, loaded)
    use_chosen_threshold(run, model)
    loops = decoding_loops(model, depth, threshold)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    summary = last_summary(run)
    rounds = device == "cuda" and summary.get("precision") == "bf16"
    chat = getattr(config.data, "chat", None)
    return TrainedModel(
        model.to(device).eval(), tokenizer, loaded.step, run.path, is_training,
        _notes(run, loaded.step, summary, is_training), loops,
        prefix_lm=bool(getattr(chat, "prefix_lm", False)),
        precision=torch.bfloat16 if rounds else None,
    )  # fmt: skip


def sampling_of(**settings: float | None) -> SamplingConfig:
    """Settings given one by one, checked.

    Raises:
        ConfigError: a value out of range.
    """
    return decode(SamplingConfig, settings)


def _notes(run: RunDir, step: int, summary: dict, is_training: bool) -> tuple[str, ...]:
    if is_training:
        return (
            f"Run {run.path} is still training; its checkpoint of step {step} is used, and later "
            "ones will write better or otherwise.",
        )
    if not summary:
        return (
            f"Run {run.path} has not been trained to its end; its checkpoint of step {step} is "
            f"used. Go on with it by `mixlab train --resume {run.path}`.",
        )
    if summary.get("status") == "failed":
        return (f"Run {run.path} failed; its checkpoint of step {step} is used.",)
    return ()


def _load(run: RunDir, which: str | int, is_training: bool) -> checkpoints.Checkpoint:
    """The checkpoint asked for. A run that is training may delete it while it is read."""
    tries = 3 if is_training and which in ("best", "last") else 1
    for left in reversed(range(tries)):
        try:
            return checkpoints.load(find_checkpoint(run, which))
        except CheckpointError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def find_checkpoint(run: RunDir, which: str | int) -> Path:
    """The folder of a checkpoint: "best", "last" or a step.

    Raises:
        CheckpointError: there is no such one.
    """
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
