"""The reasoning tasks as questions and answers in text, for models that read and write."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from mixlab.core.config import to_tree
from mixlab.data.chat.messages import Message, to_text
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import Document, SourceReport
from mixlab.tasks.base import Task
from mixlab.tasks.names import TaskChoice
from mixlab.tasks.sets import build_set
from mixlab.tasks.splits import SPLIT_VERSION, SPLITS

SET_SEED = 1
"""Runs of a task share their sets, whatever the seed of the run."""


def task_documents(
    task: Task,
    sizes: Sequence[int],
    report: SourceReport,
    turns: Callable[[np.ndarray, np.ndarray], Sequence[Message]],
) -> Iterator[Document]:
    """So many examples of every split, named by split and number.

    `turns` makes a conversation of the tokens of a question and of its answer.
    """
    report.facts |= {"document": "example", "task": task.name}
    for split, n in zip(SPLITS, sizes, strict=True):
        examples = build_set(task, split, n, SET_SEED)
        pairs = zip(examples.inputs, examples.labels, strict=True)
        for i, (question, answer) in enumerate(pairs):
            yield Document(f"{split}/{i}", to_text(turns(question, answer)))


class TaskQuestions(CorpusConfig):
    """Questions of one task with their only answers, split by the task itself.

    Equivalent examples, such as mirrored puzzles, never lie in two splits.
    """

    kind: Literal["task"] = "task"
    has_examples: ClassVar[bool] = True
    deals_splits: ClassVar[bool] = True
    task: TaskChoice
    """What is asked."""
    n_train: PositiveInt = 8000
    """Training examples."""
    n_validation: PositiveInt = 500
    """Examples that are measured during training."""
    n_test: PositiveInt = 500
    """Examples that are measured once, at the end."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        sizes = (self.n_train, self.n_validation, self.n_test)
        yield from task_documents(self.task, sizes, report, self._turns)

    def _turns(self, question: np.ndarray, answer: np.ndarray) -> list[Message]:
        return [
            Message("user", self.task.question_text(question)),
            Message("assistant", self.task.answer_text(question, answer)),
        ]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "task": to_tree(self.task),
            "generator_version": self.task.generator_version,
            "split_version": SPLIT_VERSION,
            "files": [_state(path) for path in _paths(to_tree(self.task).get("files"))],
        }


def _paths(files: Any) -> list[str]:
    """The puzzle files that a task reads."""
    return [value for value in (files or {}).values() if isinstance(value, str)]


def _state(path: str) -> list[Any]:
    """By what a change of a file is noticed; whether it is one is the task's matter."""
    found = Path(path)
    if not found.is_file():
        return [path]
    status = found.stat()
    return [path, status.st_size, status.st_mtime_ns]
