"""Sets of examples: built for a split, free of repeats, described by a manifest, proven disjoint.

The split of a generated example is a function of its split key alone (`splits.split_of`), which all
of its symmetric images share. So train and test stay apart whatever their sizes, seeds and order of
building; `prove_disjoint` shows it anew for two given sets, from the canonical forms.
"""

import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mixlab.core.config import to_tree
from mixlab.core.errors import DataError
from mixlab.core.json_files import write_bytes_atomically
from mixlab.tasks.base import Example, Task
from mixlab.tasks.splits import SPLIT_VERSION, SPLITS

_MAX_CHUNK = 256
_MAX_BARREN = 10_000
"""So many candidates without a single usable one end the search for more."""


@dataclass(frozen=True)
class TaskSet:
    """n examples of one split."""

    inputs: np.ndarray  # (n, L) uint8
    labels: np.ndarray  # (n, L) uint8
    given: np.ndarray  # (n, L) bool: the input states the label
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.inputs)

    def save(self, path: Path) -> Path:
        """Write one .npz file, atomically."""
        buffer = io.BytesIO()
        manifest = np.frombuffer(json.dumps(self.manifest).encode(), np.uint8)
        np.savez_compressed(buffer, inputs=self.inputs, labels=self.labels, manifest=manifest)
        return write_bytes_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, task: Task) -> "TaskSet":
        """Read what `save` wrote.

        Raises:
            DataError: it is no such file, was altered, or belongs to another task.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                inputs, labels = file["inputs"], file["labels"]
                manifest = json.loads(file["manifest"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path} is not a readable set of examples: {error}.") from None
        if manifest.get("task") != to_tree(task):
            raise DataError(
                f"{path} holds {manifest.get('name')}, made with other settings than {task.name}. "
                "Delete it, or give the settings that it was made with."
            )
        if manifest.get("content_hash") != content_hash(inputs, labels):
            raise DataError(f"{path} was altered: its content hash differs. Delete it.")
        return cls(inputs, labels, task.given(inputs), manifest)


def build_set(
    task: Task, split: str, n: int, seed: int, advance: Callable[[int], None] | None = None
) -> TaskSet:
    """n examples of `split`, no two of them equivalent, always the same for equal arguments.

    On 4x4 Sudoku "equivalent" means equal. `advance` is told how many more are done.

    Raises:
        DataError: the task has fewer different examples, or cannot make its difficulty.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: expected one of {', '.join(SPLITS)}.")
    if n < 1:
        raise DataError(f"examples to build = {n}: expected at least 1.")
    kept: list[Example] = []
    seen: set[bytes] = set()
    counts: Counter[str] = Counter()
    candidates = task.candidates(split, seed)
    barren = 0
    while len(kept) < n and barren < _MAX_BARREN:
        # Large chunks make canonical forms cheap; the size has no part in the result.
        chunk = list(islice(candidates, min(_MAX_CHUNK, 4 + 2 * (n - len(kept)))))
        if not chunk:
            break
        before = len(kept)
        _take(task, split, chunk, n, kept, seen, counts)
        if advance is not None:
            advance(len(kept) - before)
        barren = 0 if len(kept) > before else barren + len(chunk)
    if len(kept) < n:
        raise DataError(
            f"{task.name} has only {len(kept)} different examples in the split {split!r} "
            f"(seed {seed}): expected {n}. Ask for fewer, or widen the task's settings."
        )
    inputs = np.stack([example.question for example in kept])
    labels = np.stack([example.answer for example in kept])
    manifest = {
        "name": task.name,
        "task": to_tree(task),
        "split": split,
        "n": n,
        "seed": seed,
        "generator_version": task.generator_version,
        "split_version": SPLIT_VERSION,
        "length": task.length,
        "vocab_size": task.vocab_size,
        "symmetries": task.symmetries,
        "difficulty": _histograms(kept),
        "n_candidates": counts["candidates"],
        "n_of_other_splits": counts["other split"],
        "n_repeats_left_out": counts["repeat"],
        "content_hash": content_hash(inputs, labels),
    }
    return TaskSet(inputs, labels, task.given(inputs), manifest)


def prove_disjoint(task: Task, a: TaskSet, b: TaskSet) -> dict[str, int]:
    """Compare the canonical forms of two sets; the counts of what was compared.

    Works from the arrays alone, not from how the sets were built.

    Raises:
        DataError: an example of one set is equivalent to one of the other; names both.
    """
    places = {key: i for i, key in enumerate(task.split_keys(a.inputs, a.labels))}
    other = task.split_keys(b.inputs, b.labels)
    for j, key in enumerate(other):
        if key in places:
            raise DataError(
                f"{task.name}: example {places[key]} of {a.manifest['split']!r} and example {j} of "
                f"{b.manifest['split']!r} are equivalent ({task.symmetries}). Build both sets with "
                "this version of the lab, for different splits."
            )
    return {"n_a": len(a), "n_b": len(b), "n_keys_a": len(places), "n_keys_b": len(set(other))}


def content_hash(inputs: np.ndarray, labels: np.ndarray) -> str:
    """Equal exactly for equal arrays."""
    content = hashlib.blake2b(repr((inputs.shape, labels.shape)).encode(), digest_size=16)
    content.update(np.ascontiguousarray(inputs).tobytes())
    content.update(np.ascontiguousarray(labels).tobytes())
    return content.hexdigest()


def _take(
    task: Task,
    split: str,
    chunk: list[Example],
    n: int,
    kept: list[Example],
    seen: set[bytes],
    counts: Counter[str],
) -> None:
    """Move what belongs to the split and is new from `chunk` to `kept`, up to n."""
    questions = np.stack([example.question for example in chunk])
    answers = np.stack([example.answer for example in chunk])
    split_keys = task.split_keys(questions, answers)
    homes = task.homes(split, split_keys)
    keys = task.repeat_keys(questions, split_keys)
    for example, home, key in zip(chunk, homes, keys, strict=True):
        if len(kept) == n:
            return
        counts["candidates"] += 1
        if home != split:
            counts["other split"] += 1
        elif key in seen:
            counts["repeat"] += 1
        else:
            seen.add(key)
            kept.append(example)


def _histograms(examples: list[Example]) -> dict[str, dict[str, int]]:
    """For each measure of difficulty, how many examples have each value, in rising order."""
    measures: dict[str, Counter[Any]] = {}
    for example in examples:
        for measure, value in example.meta["difficulty"].items():
            measures.setdefault(measure, Counter())[value] += 1
    return {
        measure: {str(value): counter[value] for value in sorted(counter)}
        for measure, counter in measures.items()
    }
