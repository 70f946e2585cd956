"""Parts of an evaluation that score text: the run's own, any file, questions, harness tasks."""

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from mixlab.core.errors import ConfigError, DataError
from mixlab.core.units import percent
from mixlab.data.loader import Loader
from mixlab.data.shards import TokenShards
from mixlab.evals.multiple_choice import read_questions, score_questions
from mixlab.evals.text import score_text, split_scores, sums_by_document
from mixlab.jobs.evaluation.bench import Bench, Measured, Part, file_hash, slug

QUIET = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables of the libraries below lm-evaluation-harness."""


class LossPart(Part):
    """Loss, bits per byte and accuracy on the run's own validation and test text."""

    kind: ClassVar[str] = "loss"
    n_tokens: PositiveInt = 1_000_000
    """At most this many targets of each split, from its start."""

    def measure(self, bench: Bench) -> Measured:
        scores, details, notes = [], {}, []
        seq_len, batch_size = bench.config.data.seq_len, bench.config.eval.batch_size
        for split in ("validation", "test"):
            shards = bench.data.split(split)
            loader = Loader(shards, seq_len, bench.config.seed)
            n = min(loader.n_windows, -(-self.n_tokens // seq_len))
            with bench.screen.task(f"Loss on {split}", n * seq_len) as advance:
                # Examples of question and answer lie in their windows whole.
                starts = shards.starts if isinstance(shards, TokenShards) else None
                sums = sums_by_document(
                    bench.trained.model, loader.window_batches(n, batch_size), starts,
                    shards.token_bytes, compute_dtype=bench.compute_dtype, advance=advance,
                )  # fmt: skip
            scores += split_scores(split, sums, bench.trained.tokenizer.vocab_size)
            n_documents = int((sums.n_tokens > 0).sum())
            details[split] = {"n_documents": n_documents, "seq_len": seq_len}
            if n < loader.n_windows:
                share = percent(n / loader.n_windows)
                notes.append(f"{split}: the first {share} of its text; --n-tokens takes more.")
            if n_documents < 10:
                notes.append(
                    f"{split}: {n_documents} documents, too few for a standard error that can be "
                    "relied on."
                )
        return Measured(scores, details, notes)


class TextPart(Part):
    """Bits per byte of a text file."""

    kind: ClassVar[str] = "text"
    path: Path
    """A UTF-8 file, taken as one document."""
    window: PositiveInt | None = None
    """Tokens of the longest sequence; absent: that of training."""

    @property
    def name(self) -> str:
        return f"text-{slug(self.path)}"

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "blake2b": file_hash(self.path)}

    def measure(self, bench: Bench) -> Measured:
        window = bench.trained_len if self.window is None else self.window
        if not 2 <= window <= bench.max_len:
            raise ConfigError("window", window, f"2 to model.max_seq_len = {bench.max_len} tokens")
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise DataError(f"text {self.path} cannot be read: {reason}.") from None
        trained, name = bench.trained, self.path.name
        # A guess at the number of windows: the tokens are not known before they are made.
        with bench.screen.task(f"Bits per byte of {name}", None) as advance:
            found = score_text(
                bench.scorer, trained.tokenizer, text, name, window=window, advance=advance
            )
        details = {**found._asdict(), "window": window}
        del details["scores"]
        return Measured(found.scores, details, [])


class ChoicesPart(Part):
    """Questions with endings, in the form of HellaSwag, of ARC, or plain."""

    kind: ClassVar[str] = "choices"
    path: Path
    """A `.jsonl` file."""
    limit: PositiveInt | None = None
    """Take the first so many questions; absent: all."""

    @property
    def name(self) -> str:
        return f"choices-{slug(self.path)}"

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "blake2b": file_hash(self.path)}

    def measure(self, bench: Bench) -> Measured:
        form, questions = read_questions(self.path, self.limit)
        n = sum(len(question.endings) for question in questions)
        with bench.screen.task(f"Questions of {self.path.name}", n) as advance:
            scores, n_cut = score_questions(
                bench.scorer, bench.trained.tokenizer, questions, self.path.name, advance
            )
        notes = []
        if n_cut:
            notes.append(
                f"{self.path.name}: {n_cut} of {len(questions)} questions are longer than "
                f"model.max_seq_len = {bench.max_len} and lost their start."
            )
        return Measured(scores, {"form": form, "n_cut": n_cut}, notes)


class HarnessPart(Part):
    """One task of lm-evaluation-harness."""

    kind: ClassVar[str] = "harness"
    task: str
    """Its name, or a YAML file."""
    task_dir: Path | None = None
    """A folder with more task files."""
    n_fewshot: NonNegativeInt | None = None
    """Examples before each question; absent: as the task says."""
    limit: PositiveInt | None = None
    """Take the first so many documents; absent: all."""
    download: bool = False
    """Whether data sets may be fetched."""
    seed: NonNegativeInt = 0
    """Of the draw of examples."""

    @property
    def name(self) -> str:
        return f"harness-{slug(Path(self.task))}"

    def identity(self) -> dict[str, Any]:
        tree = super().identity()
        if self.task.endswith((".yaml", ".yml")):
            tree["blake2b"] = file_hash(Path(self.task))
        return tree

    def measure(self, bench: Bench) -> Measured:
        # Read by these libraries when they are imported.
        quiet = (
            "TQDM_DISABLE",
            "HF_DATASETS_DISABLE_PROGRESS_BARS",
            "HF_HUB_DISABLE_PROGRESS_BARS",
        )
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        for name in quiet if self.download else quiet + offline:
            os.environ[name] = "1"
        from mixlab.evals.harness import HarnessModel
        from mixlab.evals.harness_tasks import load_tasks, run_tasks

        with bench.screen.task(f"Loading task {self.task}", None):
            tasks = load_tasks([self.task], self.task_dir)
        with bench.screen.task(f"Task {self.task}", None) as advance:
            model = HarnessModel(
                bench.scorer, bench.trained.tokenizer, bench.trained.engine(),
                window=bench.trained_len, advance=advance,
            )  # fmt: skip
            scores = run_tasks(
                model, tasks, n_fewshot=self.n_fewshot, limit=self.limit, seed=self.seed
            )
        notes = []
        if model.n_cut:
            notes.append(
                f"{self.task}: {model.n_cut} requests are longer than model.max_seq_len = "
                f"{bench.max_len} and lost their start."
            )
        return Measured(scores, {"n_cut": model.n_cut}, notes)
