"""Associative recall by a language model: pairs in its own vocabulary, then keys without values.

The keys and values of `tasks.recall` become tokens of the model's vocabulary, drawn anew for every
row, so that nothing but the row itself says which value a key has.
"""

from typing import NamedTuple

import numpy as np
import torch

from mixlab.evals.likelihood import Advance, final_states
from mixlab.evals.scores import Score, clustered_share
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.tasks.draws import words
from mixlab.tasks.recall import FIRST_KEY, IGNORE, Recall


class RecallResult(NamedTuple):
    scores: list[Score]
    guess_seen: float  # what a guess among the values of the row gets, to read `recall` beside


@torch.no_grad()
def score_recall(
    model: LanguageModel,
    task: Recall,
    pool: np.ndarray,  # (at least n_keys + n_values,) ids that may stand for keys and values
    *,
    seed: int,
    n_rows: int,
    batch_tokens: int = 8192,
    compute_dtype: torch.dtype | None = None,
    advance: Advance = lambda n: None,
) -> RecallResult:
    """Accuracy at the queries; the error is over rows, `advance` counts rows.

    `recall` ranks the values that can be meant, `exact` the whole vocabulary.
    """
    rows = task.rows(seed, np.arange(n_rows))
    own = _own_tokens(task, pool, seed, n_rows)  # (n_rows, vocab of the task)
    tokens = np.take_along_axis(own, rows.tokens, axis=1)[:, :-1]  # the last answer is never read
    place = np.flatnonzero(rows.targets[0] != IGNORE)  # (Q,) the same in every row
    values = own[:, task.first_value :]  # (n_rows, n_values)
    answers = rows.targets[:, place] - task.first_value  # (n_rows, Q) places among the values
    device, n_batch = model.embed_tokens.weight.device, max(1, batch_tokens // tokens.shape[1])
    ranked, exact = [], []
    with evaluating(model):
        for first in range(0, n_rows, n_batch):
            part = slice(first, first + n_batch)
            batch = torch.from_numpy(tokens[part]).to(device)
            h = final_states(model, batch, None, compute_dtype)[:, place]  # (B, Q, D)
            logits = (h.to(model.head_weight.dtype) @ model.head_weight.T).cpu()
            of_values = torch.from_numpy(values[part])[:, None].expand(-1, len(place), -1)
            best = logits.gather(-1, of_values).argmax(dim=-1).numpy()  # (B, Q)
            ranked.append(best == answers[part])
            meant = np.take_along_axis(values[part], answers[part], axis=1)
            exact.append(logits.argmax(dim=-1).numpy() == meant)
            advance(len(batch))
    n = n_rows * len(place)
    name = f"recall, {task.n_pairs} pairs"
    scores = []
    for metric, hits, chance in (
        ("recall", np.concatenate(ranked), task.chance),
        ("exact", np.concatenate(exact), 1 / model.cfg.vocab_size),
    ):
        estimate = clustered_share(hits)
        scores.append(Score(name, metric, *estimate, n, "queries", chance, True))
    return RecallResult(scores, task.guess_seen)


def _own_tokens(task: Recall, pool: np.ndarray, seed: int, n_rows: int) -> np.ndarray:
    """(n_rows, vocab of the task): which token of the model each token of the task is, per row."""
    n = task.vocab_size - FIRST_KEY
    drawn = words("recall tokens", seed, np.arange(n_rows), len(pool))
    chosen = pool[np.argsort(drawn, axis=1)[:, :n]]
    unused = np.zeros((n_rows, FIRST_KEY), chosen.dtype)  # pad and blank occur in no row
    return np.concatenate([unused, chosen], axis=1).astype(np.int64)
