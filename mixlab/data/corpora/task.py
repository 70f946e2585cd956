"""The reasoning tasks as questions and answers in text, for models that read and write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from mixlab.core.config import to_tree
from mixlab.data.chat.messages import Message, to_text
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.documents import Document, SourceReport
from mixlab.tasks import TASKS
from mixlab.tasks.sets import build_set
from mixlab.tasks.splits import SPLIT_VERSION, SPLITS

SET_SEED = 1
"""Runs of a task share their sets, whatever the seed of the run."""


class TaskQuestions(CorpusConfig):
    """Questions of one task with their only answers, split by the task itself.

    Equivalent examples, such as mirrored puzzles, never lie in two splits.
    """

    kind: Literal["task"] = "task"
    has_examples: ClassVar[bool] = True
    deals_splits: ClassVar[bool] = True
    task: TASKS.annotation()  # type: ignore[valid-type]
    """What is asked."""
    n_train: PositiveInt = 8000
    """Training examples."""
    n_validation: PositiveInt = 500
    """Examples that are measured during training."""
    n_test: PositiveInt = 500
    """Examples that are measured once, at the end."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        report.facts |= {"document": "example", "task": self.task.name}
        sizes = (self.n_train, self.n_validation, self.n_test)
        for split, n in zip(SPLITS, sizes, strict=True):
            examples = build_set(self.task, split, n, SET_SEED)
            for i, (question, answer) in enumerate(
                zip(examples.inputs, examples.labels, strict=True)
            ):
                asked = Message("user", self.task.question_text(question))
                given = Message("assistant", self.task.answer_text(question, answer))
                yield Document(f"{split}/{i}", to_text([asked, given]))

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
