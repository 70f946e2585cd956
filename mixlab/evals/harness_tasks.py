"""Tasks of lm-evaluation-harness: found, loaded without running code of theirs, and scored."""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.core.nearest import did_you_mean
from mixlab.evals.harness import HarnessModel
from mixlab.evals.scores import Score, ratio, share


def require_harness() -> None:
    """Raises MissingPackageError unless the harness can be loaded."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingPackageError("lm-eval", "mixlab eval --tasks", "eval") from None


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
            raise LabError(
                f"task = {name!r}: expected the name of a task of lm-evaluation-harness or a YAML "
                f"file.{did_you_mean(name, known)}"
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
