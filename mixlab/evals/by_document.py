"""The validation loss of every document by itself: what a bootstrap over documents draws from."""

from typing import NamedTuple

import numpy as np
import torch

from mixlab.data.loader import Loader
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.packing import Packing


class ByDocument(NamedTuple):
    """Sums over the targets of each document, in the order of the split."""

    nats: np.ndarray  # (documents,)
    n_targets: np.ndarray  # (documents,)
    n_bytes: np.ndarray  # (documents,) of text that the targets stand for


@torch.no_grad()
def loss_by_document(
    model: LanguageModel,
    loader: Loader,
    n_windows: int,
    batch_size: int,
    token_bytes: np.ndarray,
    *,
    compute_dtype: torch.dtype | None = None,
) -> ByDocument:
    """Score the first `n_windows` windows, those of every evaluation, document by document.

    A target belongs to the document whose text it is; the EOS that ends a document is its last.
    """
    device = model.embed_tokens.weight.device
    bytes_of = np.asarray(token_bytes)
    nats, targets, documents, n_before = [], [], [], 0
    with evaluating(model):
        for batch in loader.window_batches(n_windows, batch_size):
            is_end = batch.tokens.flatten().numpy() == loader.shards.eos_id
            documents.append(n_before + np.cumsum(is_end))  # of target i, which is token i + 1
            n_before += int(is_end.sum())
            targets.append(batch.targets.flatten().numpy())
            batch = batch.to(device)
            dtype = compute_dtype or torch.bfloat16
            with torch.autocast(device.type, dtype=dtype, enabled=compute_dtype is not None):
                h = model.trunk(batch.tokens, None, Packing(batch.segments, batch.prefix)).h
            scores = score_tokens(
                h.flatten(0, 1),
                model.head_weight,
                batch.targets.flatten(),
                compute_dtype=compute_dtype,
            )
            nats.append(scores.nats.double().cpu().numpy())
    target, document = np.concatenate(targets), np.concatenate(documents)
    is_target = target != IGNORE
    target, document = target[is_target], document[is_target]
    n_documents = int(document[-1]) + 1
    return ByDocument(
        np.bincount(document, np.concatenate(nats)[is_target], n_documents),
        np.bincount(document, minlength=n_documents),
        np.bincount(document, bytes_of[target], n_documents),
    )
