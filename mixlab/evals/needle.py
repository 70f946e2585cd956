"""A needle in a haystack: one sentence with a secret word, hidden in text of the run's own kind.

    ...text  The secret word is <word>.  text...  The secret word is ->

The word is one token, drawn evenly among candidates, of which the model has to rank it first. So a
model that did not keep the sentence is right once in `n_choices` cases, whatever words it likes.
"""

from typing import NamedTuple

import numpy as np
import torch

from mixlab.core.errors import LabError
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.likelihood import Advance, final_states
from mixlab.evals.scores import Score, share
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel

BEFORE, AFTER = "\nThe secret word is", ".\n"


class Needle(NamedTuple):
    """Where needles are hidden."""

    n_tokens: int  # of the whole prompt
    depth: float  # share of the haystack that stands before the needle


def prompts(
    tokenizer: Tokenizer,
    haystack: np.ndarray,  # tokens of text, without ends of documents
    pool: np.ndarray,  # ids that may be the secret
    needle: Needle,
    *,
    n: int,
    n_choices: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts (n, T), candidates (n, n_choices) in rising order, the secret's place (n,).

    Raises:
        LabError: the prompt has no room for needle and question, or the text is too short.
    """
    before, after = tokenizer.encode(BEFORE), tokenizer.encode(AFTER)
    n_hay = needle.n_tokens - 2 * len(before) - 1 - len(after)
    if n_hay < 0:
        raise LabError(
            f"needle length = {needle.n_tokens}: expected at least {needle.n_tokens - n_hay} "
            "tokens, which needle and question take."
        )
    if len(haystack) < n_hay:
        raise LabError(
            f"needle length = {needle.n_tokens}: expected at most the validation split's "
            f"{len(haystack)} tokens and the needle's {needle.n_tokens - n_hay}."
        )
    n_before = round(needle.depth * n_hay)
    rows, choices, places = [], [], []
    for i in range(n):
        rng = np.random.default_rng([seed, needle.n_tokens, round(1000 * needle.depth), i])
        start = int(rng.integers(0, len(haystack) - n_hay + 1))
        hay = haystack[start : start + n_hay]
        candidates = np.sort(rng.choice(pool, n_choices, replace=False))
        place = int(rng.integers(n_choices))
        secret = candidates[place]
        rows.append([*hay[:n_before], *before, secret, *after, *hay[n_before:], *before])
        choices.append(candidates)
        places.append(place)
    return np.array(rows, np.int64), np.array(choices, np.int64), np.array(places)


@torch.no_grad()
def score_needle(
    model: LanguageModel,
    tokenizer: Tokenizer,
    haystack: np.ndarray,
    pool: np.ndarray,
    needle: Needle,
    *,
    n: int,
    n_choices: int,
    seed: int,
    batch_tokens: int = 8192,
    compute_dtype: torch.dtype | None = None,
    advance: Advance = lambda n: None,
) -> Score:
    """The share of needles that are found; `advance` counts needles."""
    rows, choices, places = prompts(
        tokenizer, haystack, pool, needle, n=n, n_choices=n_choices, seed=seed
    )
    device, n_batch = model.embed_tokens.weight.device, max(1, batch_tokens // rows.shape[1])
    hits = []
    with evaluating(model):
        for first in range(0, n, n_batch):
            batch = torch.from_numpy(rows[first : first + n_batch]).to(device)
            h = final_states(model, batch, None, compute_dtype)[:, -1]
            logits = (h.to(model.head_weight.dtype) @ model.head_weight.T).cpu()
            of_choices = logits.gather(-1, torch.from_numpy(choices[first : first + n_batch]))
            found = of_choices.argmax(dim=-1).numpy()
            hits.append(found == places[first : first + n_batch])
            advance(len(batch))
    name = f"needle, {needle.n_tokens} tokens, depth {needle.depth:.0%}"
    return Score(name, "accuracy", *share(np.concatenate(hits)), n, "needles", 1 / n_choices, True)
