"""Is the target the next token, in the batches and in the loss?

Targets that equal the inputs are learned to perfection in a few steps, and nothing else is.
"""

import torch

from mixlab.checks.base import CheckContext, Finding, vocab_size
from mixlab.checks.oracle import token_nats
from mixlab.checks.stream import MadeUpShards
from mixlab.data.batch import IGNORE, Batch
from mixlab.data.loader import Loader

N_ROWS = 4
LENGTH = 32
TOLERANCE_NATS = 1e-4
"""Between two sums of the same nats: float32 errs by about 1e-6 of a loss near 10, while labels
that are off by one place change it by far more than this."""


def check_labels(context: CheckContext) -> Finding:
    """Every target is its row's next token, and the trained loss is that of exactly these."""
    loader = context.loader
    batch = (loader or _made_up(context)).batch(0, N_ROWS)
    following, targets = batch.tokens[:, 1:], batch.targets[:, :-1]
    asked = targets != IGNORE
    n_wrong = int(((targets != following) & asked).sum())
    n_asked = int(asked.sum())
    copied = batch.targets == batch.tokens
    trained, expected = _losses(context)
    difference = abs(trained - expected)
    figures = {
        "wrong_targets": n_wrong, "targets": n_asked, "copies_of_the_input": int(copied.sum()),
        "trained_loss_nats": trained, "next_token_loss_nats": expected,
    }  # fmt: skip
    source = "a training batch" if loader is not None else "a made-up batch"
    measured = (
        f"{n_asked - n_wrong} of {n_asked} targets of {source} are the next token; the trained "
        f"loss is {trained:.4f} and that of the next token {expected:.4f} nats"
    )
    if n_wrong == 0 and difference <= TOLERANCE_NATS:
        meaning = "The model is asked for the token that follows, once and not twice shifted."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "The model is not asked for the next token. Targets that are not shifted make it learn to "
        "repeat its input, with a loss near 0; targets shifted twice make it skip a token."
    )
    return Finding("fail", measured, meaning, figures)


def _made_up(context: CheckContext) -> Loader:
    shards = MadeUpShards(8 * N_ROWS * LENGTH + 1, vocab_size(context.build()), seed=40)
    return Loader(shards, LENGTH, seed=0)  # type: ignore[arg-type]


def _losses(context: CheckContext) -> tuple[float, float]:
    """The loss that training computes, and the oracle's of the following tokens."""
    model = context.probe()
    batch = _made_up(context).batch(0, N_ROWS)
    # The last target is outside of the row, so the oracle can only know it from the batch; it is
    # left out here and judged by the other rows' agreement.
    targets = batch.targets.clone()
    targets[:, -1] = IGNORE
    next_tokens = torch.cat([batch.tokens[:, 1:], targets[:, -1:]], dim=1)
    trained = float(context.accumulate(model, [Batch(batch.tokens, targets, batch.segments)])[0])
    nats = token_nats(model, batch.tokens, next_tokens, batch.segments)[:, :-1]
    return trained, float(nats.mean())
