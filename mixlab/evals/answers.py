"""Questions that a model answers by itself, and how many answers are right to the letter."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops
from mixlab.ops.packing import Packing

BATCH_ROWS = 64


class Question(NamedTuple):
    """A prompt and how long its answer may get."""

    prompt: Sequence[int]
    max_new_tokens: int


@torch.inference_mode()
def greedy_answers(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    stop_ids: Sequence[int],
    n_known_tokens: int,
    prefix_lm: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """The likeliest tokens of each answer up to a stop token, which is left out.

    Prompts of one length are read together, so there is no padding and a row is what it would be
    alone. Tokens from `n_known_tokens` on are never taken. With `prefix_lm` a prompt is read both
    ways. A looped model takes its trained depth for every token. `advance` is told of rows done.
    """
    answers: list[list[int]] = [[] for _ in questions]
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
    with evaluating(model):
        at = 0
        while at < len(order):
            length = len(questions[order[at]].prompt)
            rows = [i for i in order[at : at + BATCH_ROWS] if len(questions[i].prompt) == length]
            for i, ids in zip(
                rows,
                _answer_rows(
                    model, [questions[i] for i in rows], set(stop_ids), n_known_tokens, prefix_lm
                ),
                strict=True,
            ):
                answers[i] = ids
            at += len(rows)
            advance(len(rows))
    return answers


def _answer_rows(
    model: LanguageModel,
    questions: Sequence[Question],
    stop_ids: set[int],
    n_known_tokens: int,
    prefix_lm: bool,
) -> list[list[int]]:
    """Answers to prompts of one length, in one batch."""
    tokens = torch.tensor([list(q.prompt) for q in questions], device=model.head_weight.device)
    state = model.initial_state(len(questions))
    packing = Packing.whole_prefix(tokens) if prefix_lm else None
    loops = None if model.recursion is None else Loops()
    found: list[list[int]] = [[] for _ in questions]
    is_going = [True] * len(questions)
    for _ in range(max(q.max_new_tokens for q in questions)):
        out = model(tokens, state, packing, last_only=True, loops=loops)
        state, packing = out.state, None
        tokens = out.logits[:, -1, :n_known_tokens].argmax(dim=-1, keepdim=True)
        for i, token in enumerate(tokens[:, 0].tolist()):
            if not is_going[i]:
                continue
            if token in stop_ids:
                is_going[i] = False
                continue
            found[i].append(token)
            is_going[i] = len(found[i]) < questions[i].max_new_tokens
        if not any(is_going):
            break
    return found
