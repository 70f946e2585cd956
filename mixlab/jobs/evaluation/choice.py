"""What of a run is to be measured, from the settings that a user gives in words."""

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

from mixlab.core.config import decode
from mixlab.core.errors import LabError
from mixlab.jobs.evaluation import memory, parts
from mixlab.jobs.evaluation.bench import Part

PathText = str | PathLike[str]


def chosen_parts(
    *,
    loss: bool,
    text: Sequence[PathText],
    choices: Sequence[PathText],
    tasks: Sequence[PathText],
    recall: bool,
    needle: bool,
    n_tokens: int,
    window: int | None,
    limit: int | None,
    pairs: Sequence[int] | None,
    lengths: Sequence[int] | None,
    n: int | None,
    seed: int,
    task_dir: PathText | None,
    fewshot: int | None,
    download: bool,
) -> list[Part]:
    """The parts of an evaluation in the order in which they are measured; see `Run.evaluate`.

    Raises:
        LabError: a setting out of range, or nothing is asked for.
    """
    counted = {"seed": seed} | _given(n=n)
    wanted: list[tuple[type[Part], dict[str, Any]]] = []
    if loss:
        wanted.append((parts.LossPart, {"n_tokens": n_tokens}))
    for path in _several("text", text):
        wanted.append((parts.TextPart, {"path": path, "window": window}))
    for path in _several("choices", choices):
        wanted.append((parts.ChoicesPart, {"path": path, "limit": limit}))
    if recall:
        wanted.append((memory.RecallPart, counted | _given(pairs=pairs)))
    if needle:
        wanted.append((memory.NeedlePart, counted | _given(lengths=lengths)))
    for task in _several("tasks", tasks):
        folder = None if task_dir is None else fspath(task_dir)
        settings = {"task": task, "task_dir": folder, "n_fewshot": fewshot}
        settings |= {"limit": limit, "download": download, "seed": seed}
        wanted.append((parts.HarnessPart, settings))
    if not wanted:
        raise LabError(
            "no loss without text, choices, tasks, recall or needle leaves nothing to measure. "
            "Name one of them."
        )
    _refuse_idle(
        {
            "window": (window, {"text": text}),
            "limit": (limit, {"choices": choices, "tasks": tasks}),
            "pairs": (pairs, {"recall": recall}),
            "lengths": (lengths, {"needle": needle}),
            "n": (n, {"recall": recall, "needle": needle}),
            "task_dir": (task_dir, {"tasks": tasks}),
            "fewshot": (fewshot, {"tasks": tasks}),
            "download": (download or None, {"tasks": tasks}),
        }
    )
    return [decode(cls, settings) for cls, settings in wanted]


def _refuse_idle(settings: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    """Refuse a setting that belongs to parts of which none is asked for."""
    for name, (value, parts_of_it) in settings.items():
        if value is not None and not any(parts_of_it.values()):
            raise LabError(
                f"{name} = {value!r}: belongs to {' and '.join(parts_of_it)}, which is not asked "
                f"for. Add {' or '.join(parts_of_it)}, or leave {name} out."
            )


def _given(**settings: Any) -> dict[str, Any]:
    """Those that are not left to the part."""
    return {
        key: value if isinstance(value, int) else list(value)
        for key, value in settings.items()
        if value is not None
    }


def _several(name: str, given: Any) -> list[str]:
    """Paths or names as texts; one by itself counts as one."""
    several = [given] if isinstance(given, str | PathLike) else given
    try:
        return [fspath(one) for one in several]
    except TypeError:
        raise LabError(f"{name} = {given!r}: expected a file, or a list of files.") from None
