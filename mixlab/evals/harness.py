"""lm-evaluation-harness on a model of ours, through the harness' own model interface.

The harness is loaded when a task is asked for: it is an optional package.
Source: Gao et al., "The Language Model Evaluation Harness", version 0.4 (github.com/EleutherAI).
"""

import difflib
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.likelihood import Advance, Request, Scorer
from mixlab.evals.multiple_choice import encode_pair
from mixlab.evals.scores import Score, ratio, share
from mixlab.infer.engine import Engine
from mixlab.infer.engine import Request as Prompt
from mixlab.infer.sampler import SamplingConfig

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say; the harness' own default."""
_SAMPLING = {"temperature": 1.0, "top_p": None, "top_k": None, "min_p": None}
_KNOWN = {"until", "max_gen_toks", "max_new_tokens", "do_sample", *_SAMPLING}


def require_harness() -> None:
    """Raises MissingPackageError unless the harness can be loaded."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingPackageError("lm-eval", "mixlab eval --tasks", "eval") from None


class HarnessModel:
    """What the harness asks of a model, in our terms; `as_lm` makes it the harness' subclass."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        window: int,
        advance: Advance = lambda n: None,
    ) -> None:
        self.scorer, self.tokenizer, self.engine = scorer, tokenizer, engine
        self.window, self.advance = window, advance
        self.n_cut = 0  # requests whose context lost its start, for want of room

    def loglikelihood(self, requests: "Sequence[Instance]") -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest text."""
        pairs = [encode_pair(self.tokenizer, *request.args) for request in requests]
        found = self.scorer.score(pairs, self.advance)
        self.n_cut += sum(likelihood.n_dropped > 0 for likelihood in found)
        return [(-likelihood.nats, likelihood.is_greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: "Sequence[Instance]") -> list[float]:
        """Log-probability of each whole text, in windows as the harness cuts them."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        eos, sums = self.tokenizer.eos_id, []
        for request in requests:
            tokens = self.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, eos, self.window, context_len=1)
            pairs = [Request(*make_disjoint_window(window)) for window in windows]
            if pairs:  # the harness puts the end-of-text token before the first; so does the scorer
                pairs[0] = Request((), pairs[0].continuation)
            sums.append(-math.fsum(found.nats for found in self.scorer.score(pairs)))
            self.advance(1)
        return sums

    def generate_until(self, requests: "Sequence[Instance]") -> list[str]:
        """A text for each prompt, up to the first of its stop strings."""
        texts: dict[int, str] = {}
        keys = []
        for request in requests:
            context, settings = request.args
            prompt = self._prompt(context, settings)
            keys.append(self.engine.add(prompt))
            texts[keys[-1]] = ""
        while self.engine.n_live or self.engine.n_waiting:
            for event in self.engine.step():
                if event.finish == "error":
                    raise LabError(f"a prompt of the harness cannot be answered: {event.message}")
                texts[event.key] += event.text
                if event.finish is not None:
                    self.advance(1)
        return [texts[key] for key in keys]

    def _prompt(self, context: str, settings: Mapping[str, Any]) -> Prompt:
        unknown = sorted(set(settings) - _KNOWN)
        if unknown:
            raise LabError(
                f"generation_kwargs.{unknown[0]} = {settings[unknown[0]]!r}: expected one of "
                f"{', '.join(sorted(_KNOWN))}. Change the task's file."
            )
        until = settings.get("until") or ()
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        n_new = settings.get("max_new_tokens", settings.get("max_gen_toks", MAX_NEW_TOKENS))
        ids = self.tokenizer.encode(context)
        # As the harness does with its own models: the start goes where both do not fit.
        n_new = min(int(n_new), self.engine.context - 1)
        room = self.engine.context - n_new
        self.n_cut += len(ids) > room
        drawn = {key: settings.get(key, default) for key, default in _SAMPLING.items()}
        if not settings.get("do_sample", False):
            drawn = {"temperature": 0.0}
        return Prompt(
            prompt=ids[-room:],
            max_new_tokens=n_new,
            sampling=SamplingConfig(**drawn),
            stop=stop,
        )

    def as_lm(self) -> Any:
        """An `lm_eval.api.model.LM` that asks this object."""
        from lm_eval.api.model import LM

        ours = self

        class MixlabLM(LM):
            def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
                return ours.loglikelihood(requests)

            def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
                return ours.loglikelihood_rolling(requests)

            def generate_until(self, requests: Any, **_: Any) -> list[str]:
                return ours.generate_until(requests)

        return MixlabLM()


# --- tasks ----------------------------------------------------------------------------------------


def load_tasks(names: Sequence[str], folder: Path | None) -> list[Any]:
    """The tasks of these names or YAML files, their data included.

    `folder` holds task files of the user, which come before the harness' own of the same name.

    Raises:
        LabError: an unknown name, a file that names code to run, or data that is not on this
            machine.
    """
    require_harness()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for path in _task_files(names, folder):
        _refuse_code(path)
    own = None if folder is None else str(folder)
    manager = _manager(own, with_defaults=False)
    known = set(manager.all_tasks)
    if any(not _is_file(name) and name not in known for name in names):
        manager = _manager(own, with_defaults=True)
        known = set(manager.all_tasks)
    tasks: list[Any] = []
    for name in names:
        if not _is_file(name) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise LabError(
                f"task = {name!r}: expected the name of a task of lm-evaluation-harness or a YAML "
                f"file.{f' Did you mean {close[0]!r}?' if close else ''}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tasks += manager.load([name])["tasks"].values()
            except Exception as error:  # whatever a file of the user causes inside the harness
                raise LabError(_why_not_loaded(name, error)) from None
    return tasks


@lru_cache(maxsize=2)
def _manager(own: str | None, with_defaults: bool) -> Any:
    """The harness' index of tasks; with its own, some 15,000 files are read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=own, include_defaults=with_defaults)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _task_files(names: Sequence[str], folder: Path | None) -> list[Path]:
    files = [Path(name) for name in names if _is_file(name)]
    for path in files:
        if not path.is_file():
            raise LabError(f"task = {str(path)!r}: there is no such file.")
    if folder is not None:
        if not folder.is_dir():
            raise LabError(f"task_dir = {str(folder)!r}: there is no such folder.")
        files += sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    return files


def _refuse_code(path: Path) -> None:
    """A task file may name Python functions to run; ours are data."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise LabError(f"task {path} cannot be read as text.") from None
    if "!function" in text:
        raise LabError(
            f"task {path}: names Python code to run with !function, which mixlab does not do. "
            "Write the same as a template, or put what the function makes into the data file."
        )
    if "unsafe_code" in text:
        raise LabError(
            f"task {path}: asks to run code that the model writes, which mixlab does not do."
        )


def _why_not_loaded(name: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    offline = isinstance(error, ConnectionError) or "offline" in text.lower()
    if offline or "Hub" in text:
        return (
            f"task {name}: its data is not on this machine ({text}), and nothing is downloaded "
            "unless asked for. Add --download, give a task file with data_files of your own, or "
            "score HellaSwag or ARC from a local .jsonl with --choices FILE."
        )
    return f"task {name}: cannot be loaded: {type(error).__name__}: {text}."


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[Any],
    *,
    n_fewshot: int | None,
    limit: int | None,
    seed: int,
) -> list[Score]:
    """Every metric of every task, with the harness' own standard errors.

    Raises:
        LabError: a template or a setting of a task does not fit its data.
    """
    from lm_eval.evaluator import simple_evaluate

    os_level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        results = simple_evaluate(
            model.as_lm(), tasks=list(tasks), num_fewshot=n_fewshot, limit=limit,
            task_manager=_manager(None, with_defaults=False), bootstrap_iters=1000,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
            fewshot_random_seed=seed,
        )  # fmt: skip
    except LabError:
        raise
    except Exception as error:  # whatever a template or a data file may cause inside the harness
        names = ", ".join(str(task.task_name) for task in tasks)
        text = " ".join(str(error).split())[:500]
        raise LabError(
            f"task {names}: lm-evaluation-harness failed: {type(error).__name__}: {text}."
        ) from error
    finally:
        logging.getLogger("lm_eval").setLevel(os_level)
    assert results is not None
    return [score for task in results["results"] for score in _scores(task, results)]


def _scores(task: str, results: Mapping[str, Any]) -> list[Score]:
    found, figures = [], results["results"][task]
    samples = results.get("samples", {}).get(task, [])
    n = results.get("n-samples", {}).get(task, {}).get("effective", len(samples))
    is_choice = results["configs"].get(task, {}).get("output_type") == "multiple_choice"
    chance = None
    if is_choice and samples:
        chance = math.fsum(1 / len(sample["arguments"]) for sample in samples) / len(samples)
    for key, value in figures.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{filtered}")
        cases = [
            s[metric] for s in samples if metric in s and s.get("filter", filtered) == filtered
        ]
        higher = results.get("higher_is_better", {}).get(task, {}).get(metric)
        is_share = metric in ("acc", "acc_norm", "acc_bytes")
        found.append(
            Score(
                task, metric if filtered == "none" else f"{metric} ({filtered})", float(value),
                _error(metric, float(value), error, cases), n,
                "questions" if is_share else "samples", chance if is_share else None,
                bool(higher if higher is not None else True),
            )
        )  # fmt: skip
    return found


def _error(metric: str, value: float, given: object, cases: list[Any]) -> float | None:
    """The harness' standard error, or ours where it gives none or a hollow one.

    It gives none for perplexities and bits, whose cases are (log-likelihood, length) pairs, and 0
    where all cases agree.
    """
    if cases and all(isinstance(case, tuple | list) and len(case) == 2 for case in cases):
        nats, lengths = np.array(cases, np.float64).T
        error = ratio(-nats, lengths).standard_error
        if error is None:
            return None
        return float(error / math.log(2) if metric == "bits_per_byte" else value * error)
    if isinstance(given, float) and given > 0:
        return given
    if cases and all(isinstance(c, int | float | np.number) and c in (0, 1) for c in cases):
        return share(np.array(cases, np.float64)).standard_error
    return None
