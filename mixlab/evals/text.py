"""Loss and bits per byte, with standard errors: of a split of the run's text, and of any text."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mixlab.core.errors import DataError
from mixlab.data.batch import Batch
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.evals.likelihood import Advance, Scorer, final_states, rolling
from mixlab.evals.scores import Score, ratio
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.packing import Packing


class DocumentSums(NamedTuple):
    """Sums over the targets of each document, all (n_documents,) float64."""

    nats: np.ndarray
    hits: np.ndarray  # targets that were the likeliest token
    n_bytes: np.ndarray
    n_tokens: np.ndarray


@torch.no_grad()
def sums_by_document(
    model: LanguageModel,
    batches: Iterable[Batch],
    starts: np.ndarray | None,  # (n_documents + 1,) where each document begins in the stream
    token_bytes: np.ndarray,  # (vocab,)
    *,
    compute_dtype: torch.dtype | None = None,
    advance: Advance = lambda n: None,
) -> DocumentSums:
    """Score the windows of a split, which `batches` holds in the order of the stream.

    The same figures as `language_modelling.evaluate`, kept apart by document; `advance` counts
    tokens. Without `starts` the windows hold whole documents, told apart by their segments.
    """
    nats, hits, targets_seen, documents = [], [], [], []
    n_before = 0
    device = model.embed_tokens.weight.device
    with evaluating(model):
        for batch in batches:
            batch = batch.to(device)
            packing = Packing(batch.segments, batch.prefix)
            h = final_states(model, batch.tokens, packing, compute_dtype)
            targets = batch.targets.flatten()
            scores = score_tokens(
                h.flatten(0, 1), model.head_weight, targets, compute_dtype=compute_dtype
            )
            nats.append(scores.nats.double().cpu().numpy())
            hits.append(scores.is_correct.cpu().numpy())
            targets_seen.append(targets.cpu().numpy())
            numbers = _numbered(batch.segments.cpu().numpy()) + n_before
            documents.append(numbers.ravel())
            n_before = int(numbers.max()) + 1
            advance(len(targets))
    flat = np.concatenate(targets_seen)
    is_target = flat != IGNORE
    if starts is None:
        document = np.concatenate(documents)
    else:  # target i of the stream is its token i + 1
        document = np.searchsorted(starts, np.arange(1, len(flat) + 1), side="right") - 1
    n_documents = int(document.max()) + 1

    def summed(weights: np.ndarray) -> np.ndarray:
        return np.bincount(document, weights.astype(np.float64), n_documents)

    return DocumentSums(
        nats=summed(np.concatenate(nats)),
        hits=summed(np.concatenate(hits)),
        n_bytes=summed(np.where(is_target, token_bytes[np.maximum(flat, 0)], 0)),
        n_tokens=summed(is_target),
    )


def _numbered(segments: np.ndarray) -> np.ndarray:
    """(B, T) segments, which begin anew in each row, numbered on from row to row."""
    counts = segments.max(axis=1) + 1
    return segments + (np.cumsum(counts) - counts)[:, None]


def split_scores(split: str, sums: DocumentSums, vocab_size: int) -> list[Score]:
    """Loss, bits per byte, accuracy of a split; the error is over its documents."""
    n = round(sums.n_tokens.sum())
    uniform = math.log(vocab_size)
    loss, accuracy = ratio(sums.nats, sums.n_tokens), ratio(sums.hits, sums.n_tokens)
    bits = ratio(sums.nats / math.log(2), sums.n_bytes)
    bits_chance = uniform / math.log(2) * n / max(1.0, sums.n_bytes.sum())
    return [
        Score(split, "loss_nats", *loss, n, "tokens", uniform, False),
        Score(split, "bits_per_byte", *bits, n, "tokens", bits_chance, False),
        Score(split, "accuracy", *accuracy, n, "tokens", 1 / vocab_size, True),
    ]


class TextResult(NamedTuple):
    scores: list[Score]
    n_bytes: int
    n_tokens: int
    n_windows: int


def score_text(
    scorer: Scorer,
    tokenizer: Tokenizer,
    text: str,
    name: str,
    *,
    window: int,
    advance: Advance = lambda n: None,
) -> TextResult:
    """Bits per byte of a text as one document; `advance` counts windows.

    After the first window, each token is predicted from at least half a window before it. The
    error is over windows, as if they were independent.

    Raises:
        DataError: the text is empty.
    """
    tokens: Sequence[int] = tokenizer.encode(text)
    if not tokens:
        raise DataError(f"text {name}: is empty. Expected some text to score.")
    requests = rolling(tokens, window, max(1, window // 2))
    found = scorer.score(requests, advance)
    n_bytes = len(text.encode())
    # Bytes of each window: what it stands for, scaled where the tokenizer counts only means.
    per_token = tokenizer.token_bytes[np.asarray(tokens)].astype(np.float64)
    per_token *= n_bytes / per_token.sum() if per_token.sum() else 0.0
    ends = np.cumsum([likelihood.n_tokens for likelihood in found])
    sizes = np.add.reduceat(per_token, np.concatenate([[0], ends[:-1]]))
    nats = np.array([likelihood.nats for likelihood in found])
    lengths = np.diff(ends, prepend=0)
    uniform, n = math.log(tokenizer.vocab_size), len(tokens)
    bits = ratio(nats / math.log(2), sizes)
    chance = uniform / math.log(2) * n / n_bytes
    scores = [
        Score(name, "bits_per_byte", *bits, n_bytes, "bytes", chance, False),
        Score(name, "loss_nats", *ratio(nats, lengths), n, "tokens", uniform, False),
    ]
    return TextResult(scores, n_bytes, n, len(found))
