"""The Python face of mixlab, for notebooks and scripts: the same code path as the command line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlab.core.config import read_yaml, set_path
from mixlab.core.errors import LabError, RunError
from mixlab.core.recipes import load_recipe, override_preset
from mixlab.core.run_dir import Columns, RunDir
from mixlab.jobs.config import AnyRunConfig, RefineRunConfig, RunConfig, decode_config
from mixlab.jobs.depth import decoding_loops
from mixlab.jobs.launched import n_processes
from mixlab.jobs.refine.solving import Solved, solve_for_run
from mixlab.jobs.refine.trained import TrainedSolver, open_refiner
from mixlab.jobs.screen import Screen
from mixlab.jobs.trained import TrainedModel, open_trained, sampling_of

if TYPE_CHECKING:
    from mixlab.jobs.evaluation.run import PartResult

__all__ = ["Run", "RunConfig", "open_run", "recipe", "train"]

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One, or several."""


def recipe(name_or_file: str | Path, /, **overrides: Any) -> AnyRunConfig:
    """A packaged recipe or a YAML file as a config, with changes laid over it.

    Changes are nested like the config, or name one key with double underscores for the dots; those
    of a `kind` go first, so that their order does not matter:

        mixlab.recipe("quickstart", train={"length": "1M tokens"}, seed=2)
        mixlab.recipe("quickstart", train__length="1M tokens", model__n_layers=6)
        mixlab.recipe("quickstart", data="packages")         # a preset of a part

    Raises:
        LabError: an unknown recipe, key, kind or value.
    """
    if not isinstance(name_or_file, str | PathLike) or not str(name_or_file):
        raise LabError(f"recipe = {name_or_file!r}: expected the name of a recipe, or a YAML file.")
    tree = load_recipe(str(name_or_file))
    changes = [(re.split(r"__|\.", key), key, value) for key, value in overrides.items()]
    changes.sort(key=lambda change: change[0][-1] != "kind")  # stable: order is kept otherwise
    for path, key, value in changes:
        if not all(path):
            raise LabError(f"{key} = {value!r}: expected a key such as train__batch_size.")
        preset = None
        if len(path) == 1 and isinstance(value, str):
            preset = override_preset(tree, key, value)
        tree = set_path(tree, path, value) if preset is None else preset
    return decode_config(tree)


def train(
    config: AnyRunConfig, *, run_dir: str | Path | None = None, screen: Screen | None = None
) -> "Run":
    """Train a config into a new run folder (default: runs/NAME, runs/NAME-2, ...).

    Ctrl-C saves and returns; `mixlab train --resume` goes on from there.

    Raises:
        LabError: anything that the user can set right.
    """
    from mixlab.jobs.train import start_run

    if not isinstance(config, RunConfig | RefineRunConfig):
        raise LabError(
            f"config = {config!r}: expected what mixlab.recipe(...) returns, such as "
            'mixlab.train(mixlab.recipe("quickstart")).'
        )
    if n_processes() > 1:
        raise LabError(
            f"{n_processes()} processes: expected one for mixlab.train, as each would train a run "
            "of its own. Several share one with `torchrun ... -m mixlab train`."
        )
    path = None if run_dir is None else _folder("run_dir", run_dir)
    return Run(start_run(config, run_dir=path, screen=screen, command="mixlab.train(...)").run)


def open_run(path: str | Path) -> "Run":
    """A run folder, for its figures, its model and its pictures.

    Raises:
        RunError: there is no run at `path`.
    """
    return Run(RunDir.open(_folder("path", path)))


def _folder(name: str, value: object) -> Path:
    """A path as it was given to Python, where an empty one would quietly mean this folder."""
    if isinstance(value, str | PathLike) and str(value):
        return Path(value)
    raise RunError(f"{name} = {value!r}: expected a run folder, such as 'runs/quickstart'.")


class Run:
    """One run folder. Figures are read anew at each access, so a running run can be watched."""

    def __init__(self, folder: RunDir) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"mixlab.open_run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def config(self) -> AnyRunConfig:
        """The config that the run was trained with, settled."""
        return decode_config(read_yaml(self._folder.config_path))

    @property
    def metrics(self) -> Columns:
        """One value per update: step, tokens, loss_nats, lr, grad_norm, ... as lists."""
        return self._folder.metrics()

    @property
    def evals(self) -> Columns:
        """One value per evaluation: step, loss_nats, accuracy, bits_per_byte, ... as lists."""
        return self._folder.evals()

    @property
    def summary(self) -> Mapping[str, Any]:
        """How the run ended; empty while it is still training."""
        return self._folder.read_json("summary.json") or {}

    @property
    def curves(self) -> Path:
        """The picture of the training curves, drawn anew."""
        from mixlab.report.plots import write_training_curves

        return write_training_curves(self._folder)

    @property
    def report(self) -> str:
        """The report in Markdown.

        Raises:
            RunError: it is not written yet.
        """
        if not self._folder.report_path.exists():
            raise RunError(
                f"run {self.path}: has no report yet, which is written when training ends."
            )
        return self._folder.report_path.read_text(encoding="utf-8")

    def model(self, checkpoint: str | int = "best") -> TrainedModel:
        """Weights and tokenizer of "best", "last" or the number of a kept step."""
        return open_trained(self.path, checkpoint)

    @cached_property
    def _best(self) -> TrainedModel:
        return self.model()

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 120,
        temperature: float = 0.8,
        top_k: int | None = 40,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        window: bool = False,
        depth: int | None = None,
        threshold: float | None = None,
    ) -> str:
        """Continue `prompt` with the best checkpoint; the same seed gives the same text.

        An empty prompt begins a new document. The text ends before the first of the texts in
        `stop`. A prompt that is too long is an error, or with `window` loses its beginning. A
        looped model takes `depth` steps per token (absent: as many as it was trained for), and
        tokens leave at `threshold` (absent: the run's own).

        Raises:
            LabError: a setting out of range, or more text than the model's context holds.
        """
        sampling = sampling_of(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        return self._looping(depth, threshold).generate(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop,
            window=window,
        )  # fmt: skip

    def _looping(self, depth: int | None, threshold: float | None) -> TrainedModel:
        if depth is None and threshold is None:
            return self._best
        return replace(self._best, loops=decoding_loops(self._best.model, depth, threshold))

    @cached_property
    def _solver(self) -> TrainedSolver:
        return open_refiner(self.path)

    def solve(
        self,
        puzzles: str | PathLike[str] | Sequence[str] | None = None,
        *,
        test: int | None = None,
        max_steps: int | None = None,
        exit_threshold: float | None = None,
        all_steps: bool = False,
        num_rollouts: int = 1,
        seed: int = 0,
        steps: bool = False,
    ) -> list[Solved]:
        """Solve puzzles with the best checkpoint of a run of kind refine, as `mixlab solve` does.

        `puzzles` is one as text, a file of them, or several texts; absent, the first `test` of the
        run's test puzzles (default: one). A puzzle takes `max_steps` segments (absent: as many as
        in training) unless the halting head stops it above `exit_threshold` (absent: the run's
        own), which `all_steps` forbids. Of `num_rollouts` tries the head picks one. With `steps`,
        every answer has its `film`: the answers after each segment.

        Raises:
            LabError: a run of another kind, a setting out of range, or a puzzle that is none or
                has not just one answer.
        """
        return solve_for_run(
            self._solver, self.path, puzzles, test=test, max_steps=max_steps,
            exit_threshold=exit_threshold, all_steps=all_steps, num_rollouts=num_rollouts,
            seed=seed, with_film=steps,
        )  # fmt: skip

    def evaluate(
        self,
        *,
        loss: bool = True,
        text: Paths = (),
        choices: Paths = (),
        tasks: Paths = (),
        recall: bool = False,
        needle: bool = False,
        n_tokens: int = 1_000_000,
        window: int | None = None,
        limit: int | None = None,
        pairs: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        n: int | None = None,
        seed: int = 0,
        task_dir: str | PathLike[str] | None = None,
        fewshot: int | None = None,
        download: bool = False,
        checkpoint: str | int = "best",
        again: bool = False,
        screen: Screen | None = None,
    ) -> "list[PartResult]":
        """Measure the model as `mixlab eval` does, into the run folder; one result for each part.

        Parts are the loss on validation and test text (up to `n_tokens` of each); bits per byte of
        the files in `text`, in windows of `window` tokens; questions in the .jsonl files of
        `choices`; `tasks` of lm-evaluation-harness; associative `recall` of so many `pairs`; and
        `needle`s in prompts of `lengths` tokens. `limit` takes the first questions, `n` is rows or
        needles. What was measured before is read from its file, unless `again`.

        Raises:
            LabError: no such file or task, a setting out of range, or a run that writes no text.
        """
        from mixlab.jobs.evaluation.choice import chosen_parts
        from mixlab.jobs.evaluation.run import evaluate_run

        parts = chosen_parts(
            loss=loss, text=text, choices=choices, tasks=tasks, recall=recall, needle=needle,
            n_tokens=n_tokens, window=window, limit=limit, pairs=pairs, lengths=lengths, n=n,
            seed=seed, task_dir=task_dir, fewshot=fewshot, download=download,
        )  # fmt: skip
        return evaluate_run(self.path, parts, checkpoint=checkpoint, again=again, screen=screen)

    def tune(
        self,
        data: str | Path,
        *overrides: str,
        run_dir: str | Path | None = None,
        epochs: float | None = None,
        screen: Screen | None = None,
    ) -> "Run":
        """Tune this run on examples of question and answer, as `mixlab sft` does; the child run.

        `data` is a file of JSON lines or `instructions`; overrides are texts such as
        "train.optimizer.lr=1e-4".

        Raises:
            LabError: no such data, or settings that are not valid.
        """
        from mixlab.jobs.sft import tune_run

        result = tune_run(
            self.path,
            str(data),
            overrides,
            run_dir=None if run_dir is None else _folder("run_dir", run_dir),
            epochs=epochs,
            screen=screen,
            command="Run.tune(...)",
        )
        return Run(result.run)
