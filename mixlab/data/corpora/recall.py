"""Multi-query associative recall as text to train on: the loss is at the answers alone.

    k1 v1 k2 v2 ... kn vn   q1 a1 q2 a2 ...

Keys and values are single letters and digits, so with a tokenizer of bytes (`bpe` with 257 entries)
each of them is one token. With the chat template `bare` nothing stands between them, and the
accuracy of a run is the share of queries that it answers rightly. `tasks.recall` says more.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from mixlab.core.config import to_tree
from mixlab.data.chat.messages import Message
from mixlab.data.corpora.base import CorpusConfig
from mixlab.data.corpora.task import task_documents
from mixlab.data.documents import Document, SourceReport
from mixlab.tasks.recall import Recall
from mixlab.tasks.splits import SPLIT_VERSION


class RecallText(CorpusConfig):
    """Pairs of keys and values, then the values of some keys are asked for, one after the other.

    Examples that differ in the order of the pairs alone never lie in two splits.
    """

    kind: Literal["recall"] = "recall"
    has_examples: ClassVar[bool] = True
    deals_splits: ClassVar[bool] = True
    task: Recall = Recall()
    """How many pairs and queries, and of how many keys and values."""
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
        """The pairs with the first query, its answer, the next query, its answer, ..."""
        letters = [self.task.alphabet[token] for token in answer]
        n = 2 * self.task.n_pairs
        pairs, queries, values = "".join(letters[:n]), letters[n::2], letters[n + 1 :: 2]
        turns = []
        for place, (query, value) in enumerate(zip(queries, values, strict=True)):
            turns.append(Message("user", query if place else pairs + query))
            turns.append(Message("assistant", value))
        return turns

    def fingerprint(self) -> dict[str, Any]:
        return {
            "task": to_tree(self.task),
            "generator_version": self.task.generator_version,
            "split_version": SPLIT_VERSION,
        }
