"""Questions with several endings, scored by how likely the model finds each ending.

`acc` takes the ending of greatest log-likelihood, `acc_norm` that of greatest log-likelihood per
character, so that short endings have no advantage: both as lm-evaluation-harness defines them, for
the files in which HellaSwag and ARC are published, and for a plain form of our own.

Source: Zellers et al., HellaSwag [arXiv:1905.07830]; Clark et al., ARC [arXiv:1803.05457]; the
        prompts are those of lm-evaluation-harness 0.4.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixlab.core.errors import DataError
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.likelihood import Advance, Request, Scorer
from mixlab.evals.scores import Score, share

FORMS = (
    'HellaSwag {"activity_label", "ctx_a", "ctx_b", "endings", "label"}, '
    'ARC {"question", "choices", "answerKey"}, or {"context", "choices", "answer"} with the place '
    "of the right choice"
)


class Question(NamedTuple):
    context: str
    endings: tuple[str, ...]  # each is appended to the context after a blank
    answer: int  # place of the right one


def read_questions(path: Path, limit: int | None = None) -> tuple[str, list[Question]]:
    """The name of the form and the questions of a `.jsonl` file.

    Raises:
        DataError: the file cannot be read, or a line has no known form; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"questions {path} cannot be read: {reason}.") from None
    form, questions = "", []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and len(questions) == limit:
            break
        try:
            form, question = _question(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = "it has another form"
            if isinstance(error, json.JSONDecodeError):
                reason = "it is not JSON"
            elif isinstance(error, _BadQuestionError):
                reason = str(error)
            raise DataError(
                f"questions {path}, line {number}: {reason}. Expected one JSON object per line: "
                f"{FORMS}."
            ) from None
        questions.append(question)
    if not questions:
        raise DataError(
            f"questions {path}: holds none. Expected one JSON object per line: {FORMS}."
        )
    return form, questions


class _BadQuestionError(ValueError):
    """Why a line is no question."""


def _question(row: Mapping[str, Any]) -> tuple[str, Question]:
    for name, (keys, read) in _READERS.items():
        if keys <= row.keys():
            context, endings, answer = read(row)
            if len(endings) < 2:
                raise _BadQuestionError(f"it has {len(endings)} endings, where two are the least")
            if not 0 <= answer < len(endings):
                raise _BadQuestionError(f"its answer is number {answer} of {len(endings)}, from 0")
            if not all(isinstance(text, str) and text for text in (context, *endings)):
                raise _BadQuestionError("its context or an ending is empty or no text")
            return name, Question(context, tuple(endings), answer)
    raise _BadQuestionError(f"its keys are {', '.join(sorted(map(str, row)))}")


def _hellaswag(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _clean(context), [_clean(ending) for ending in row["endings"]], int(row["label"])


def _clean(text: str) -> str:
    """Without the marks that WikiHow's part of HellaSwag is full of."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _arc(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Either published form: choices inside the question, or as columns beside it."""
    question, choices = row["question"], row.get("choices")
    if isinstance(question, Mapping):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, Mapping):
        texts, labels = list(choices["text"]), list(choices["label"])
    else:
        texts, labels = [c["text"] for c in choices], [c["label"] for c in choices]
    if row["answerKey"] not in labels:
        raise _BadQuestionError(f"its answerKey {row['answerKey']!r} is none of its labels")
    return f"Question: {question}\nAnswer:", texts, labels.index(row["answerKey"])


def _plain(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    return row["context"], list(row["choices"]), int(row["answer"])


_READERS: dict[str, tuple[set[str], Callable[[Mapping[str, Any]], tuple[str, list[str], int]]]] = {
    "HellaSwag": ({"activity_label", "ctx_a", "ctx_b", "endings", "label"}, _hellaswag),
    "ARC": ({"question", "answerKey"}, _arc),
    "plain": ({"context", "choices", "answer"}, _plain),
}


def encode_pair(tokenizer: Tokenizer, context: str, ending: str) -> Request:
    """Context and ending as tokens of the whole text, so that no token is torn at the seam.

    Blanks at the end of the context count as the beginning of the ending, as in the harness.
    """
    stripped = context.rstrip()
    if not stripped:
        return Request((), tokenizer.encode(context + ending))
    ending = context[len(stripped) :] + ending
    whole = tokenizer.encode(stripped + ending)
    n_context = len(tokenizer.encode(stripped))
    if n_context >= len(whole):  # the ending melted into the last token of the context
        n_context = len(whole) - 1
    return Request(whole[:n_context], whole[n_context:])


class ChoiceResult(NamedTuple):
    scores: list[Score]
    n_cut: int  # questions whose context was too long for the model and lost its start


def score_questions(
    scorer: Scorer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    name: str,
    advance: Advance = lambda n: None,
) -> ChoiceResult:
    """`acc` and `acc_norm`; `advance` counts endings."""
    requests = [
        encode_pair(tokenizer, question.context, f" {ending}")
        for question in questions
        for ending in question.endings
    ]
    found = iter(scorer.score(requests, advance))
    hits, hits_norm, cut = [], [], 0
    for question in questions:
        likelihoods = [next(found) for _ in question.endings]
        nats = np.array([likelihood.nats for likelihood in likelihoods])
        lengths = np.array([len(ending) for ending in question.endings], np.float64)
        hits.append(int(nats.argmin()) == question.answer)
        hits_norm.append(int((nats / lengths).argmin()) == question.answer)
        cut += any(likelihood.n_dropped for likelihood in likelihoods)
    chance = float(np.mean([1 / len(question.endings) for question in questions]))
    n = len(questions)
    scores = [
        Score(name, "acc", *share(np.array(hits)), n, "questions", chance, True),
        Score(name, "acc_norm", *share(np.array(hits_norm)), n, "questions", chance, True),
    ]
    return ChoiceResult(scores, cut)
