"""Conversations from JSON lines: the question and answer examples of instruction tuning."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from mixlab.core.errors import DataError
from mixlab.data.chat.messages import messages_of, problem_of, to_text
from mixlab.data.corpora.base import CorpusConfig, left_out
from mixlab.data.corpora.jsonl import NOT_JSON, SUFFIXES, json_rows
from mixlab.data.documents import N_NAMED, Document, SourceReport
from mixlab.data.files import find_files, fingerprint


class ChatRows(CorpusConfig):
    """Rows with `messages`, or with a prompt and a completion. Unsound rows are counted and named.

    A message has a `role` (system, user or assistant) and `content`. The last one is an answer.
    """

    kind: Literal["chat"] = "chat"
    has_examples: ClassVar[bool] = True
    path: str | list[str]
    """A file, a folder (its .jsonl, .ndjson and .jsonl.gz files), a glob, or a list of these."""
    prompt_field: str = "prompt"
    """The field with the question, in rows without `messages`."""
    completion_field: str = "completion"
    """The field with the answer, in rows without `messages`."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many examples, the first ones; None reads all."""

    def documents(self, report: SourceReport) -> Iterator[Document]:
        report.facts |= {"document": "example", "reached_max_documents": False}
        n_found = 0
        for file in find_files(self.path, SUFFIXES, report):
            for name, row in json_rows(file, report):
                messages = messages_of(row, self.prompt_field, self.completion_field)
                if isinstance(messages, str):
                    report.saw_fields(list(row)[:N_NAMED])
                    report.skip(f"row with {messages}", name)
                    continue
                problem = problem_of(messages, ends_with="assistant")
                if problem is not None:
                    report.skip(f"row with {problem}", name)
                    continue
                if n_found == self.max_documents:
                    report.facts["reached_max_documents"] = True
                    return
                n_found += 1
                yield Document(name, to_text(messages))

    def fingerprint(self) -> dict[str, Any]:
        return fingerprint(find_files(self.path, SUFFIXES, SourceReport()))

    def nothing_left(self, report: SourceReport) -> DataError:
        if report.text_fields:
            return DataError(
                f"data.corpus.path = {self.path!r}: expected rows with messages, or with "
                f"{self.prompt_field} and {self.completion_field}, but their fields are "
                f"{', '.join(report.text_fields)}.{left_out(report)} Name the two fields with "
                "data.corpus.prompt_field and data.corpus.completion_field."
            )
        if NOT_JSON in report.skipped:
            return DataError(
                f"data.corpus.path = {self.path!r}: expected JSON objects, one on each line, but "
                f"no line is one.{left_out(report)} A line is such as "
                '{"messages": [{"role": "user", "content": "Hi"}, '
                '{"role": "assistant", "content": "Hello!"}]}.'
            )
        return DataError(
            f"data.corpus.path = {self.path!r}: expected at least one example of question and "
            f"answer, but there is none.{left_out(report)}"
        )
