"""What a model that was trained on examples of question and answer says when it is asked."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from mixlab.core.run_dir import RunDir
from mixlab.data.chat.messages import Message
from mixlab.data.chat.shards import ExampleShards
from mixlab.data.progress import Advance
from mixlab.evals.answers import Question, greedy_answers
from mixlab.evals.scores import share
from mixlab.jobs.screen import Screen
from mixlab.jobs.session import Session

MAX_ANSWER_TOKENS = 64
"""Longer answers are not compared to the letter: many are right in other words."""
SPARE_TOKENS = 8
"""A model may write so many tokens more than the right answer has, so that one can see them."""
MAX_GROUPS = 30
FILE = "answers.jsonl"


class Answered(NamedTuple):
    """One question of a split with its answer."""

    group: str
    question: str
    expected: str
    given: str

    @property
    def is_exact(self) -> bool:
        return self.given.strip() == self.expected.strip()


def has_examples(session: Session) -> bool:
    return session.data.chat is not None


def ask(session: Session, split: str, n: int, screen: Screen) -> list[Answered]:
    """Answer the first `n` questions of a split, which are in hash order and so a random sample.

    With an average of the parameters, that one answers, as in every evaluation.
    """
    shards: ExampleShards = session.data.split(split)
    tokenizer, room = session.data.tokenizer, session.config.model.max_seq_len
    # Where nothing ends an answer, its length is known.
    n_spare = SPARE_TOKENS if session.data.chat_format().template.ends_answers else 0
    asked = []
    for i in range(shards.n_documents):
        example = shards.last_turn(i)
        n_most = len(example.answer) + n_spare
        if len(example.answer) <= MAX_ANSWER_TOKENS and len(example.prompt) + n_most <= room:
            asked.append((i, example))
        if len(asked) == n:
            break
    questions = [Question(e.prompt, len(e.answer) + n_spare) for _, e in asked]
    average = nullcontext() if session.ema is None else session.ema.applied()
    with average, screen.task(f"Asking {split} questions", len(questions)) as advance:
        answers = _greedy(session, questions, advance)
    texts = shards.asked()
    return [
        Answered(_group(name), question, expected, tokenizer.decode(given))
        for (name, question, expected), given in zip(
            (texts[i] for i, _ in asked), answers, strict=True
        )
    ]


def sample_answers(session: Session, prompts: Sequence[str], step: int) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the likeliest answers to `prompts` as a user would ask them."""
    cfg, chat = session.config.sample, session.data.chat_format()
    rows: list[dict[str, Any]] = []
    if not chat.template.ends_answers:  # an answer to a question of one's own would not end
        return rows
    for prompt in prompts[: cfg.n]:
        ids = chat.prompt_ids([Message("user", prompt)])
        room = min(cfg.max_new_tokens, session.config.model.max_seq_len - len(ids))
        if room < 1:
            continue
        (given,) = _greedy(session, [Question(ids, room)])
        text = session.data.tokenizer.decode(given)
        rows.append({"prompt": prompt, "text": text, "step": step, "settings": {"temperature": 0}})
    return rows


def _greedy(
    session: Session, questions: Sequence[Question], advance: Advance = lambda n: None
) -> list[list[int]]:
    chat = session.data.chat_format()
    return greedy_answers(
        session.model,
        questions,
        stop_ids=chat.stop_ids,
        n_known_tokens=session.data.tokenizer.vocab_size,
        prefix_lm=chat.prefix_lm,
        advance=advance,
    )


def answer_figures(answered: list[Answered]) -> dict[str, Any]:
    """Exact matches, in all and by group where there are several."""
    groups: dict[str, list[bool]] = {}
    for row in answered:
        groups.setdefault(row.group, []).append(row.is_exact)
    hits = np.array([row.is_exact for row in answered])
    accuracy, error = share(hits)
    found: dict[str, Any] = {
        "n": len(answered),
        "exact": int(hits.sum()),
        "exact_accuracy": accuracy,
        "standard_error": error,
    }
    if 1 < len(groups) <= MAX_GROUPS:
        found["by_group"] = {
            name: {"n": len(rows), "exact": sum(rows)} for name, rows in sorted(groups.items())
        }
    return found


def write_answers(run: RunDir, session: Session, screen: Screen) -> dict[str, Any] | None:
    """Ask questions of the test split, keep all answers in answers.jsonl; the figures.

    None where no answer is short enough to be compared.
    """
    n = session.config.eval.n_answers
    answered = ask(session, "test", n, screen) if n else []
    if not answered:
        return None
    run.truncate_jsonl(FILE, 0)
    for row in answered:
        run.append(FILE, {**row._asdict(), "exact": row.is_exact})
    figures = answer_figures(answered)
    before = (run.read_json("parent.json") or {}).get("answers")
    if before is not None:
        figures["before"] = before
    return figures


def _group(name: str) -> str:
    """The family of a made example, or the file of one that was read."""
    return name.rpartition(":")[0] or name.rpartition("/")[0] or name
