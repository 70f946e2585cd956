"""Does the model use its input? Its loss on the true tokens, against random ones in their place.

Equal losses mean that the input is ignored, whatever the loss itself looks like.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from mixlab.checks.base import (
    CheckContext,
    Finding,
    TrainedModel,
    new_generator,
    next_token_batch,
)
from mixlab.checks.oracle import token_nats
from mixlab.data.batch import IGNORE, Batch
from mixlab.training.optimizers import AdamWConfig

MIN_GAP_NATS = 0.05
MIN_GAP_ERRORS = 4
"""The gap must be this many of its standard errors, and large enough to be of any use."""
N_WINDOWS, WINDOW = 16, 64
"""Sequences, and the tokens at the head of each that are looked at: seconds for a large model."""
MORE_WINDOWS = 128
"""Sequences that are looked at where fewer do not decide."""
UNTRAINED_FRAC = 0.1
"""A loss that is above the unigram entropy by more than this share of the way to ln V has not
learned what could be told from ignoring the input."""

N_STEPS = 40
LENGTH = 32
TASK_TOKENS = 16
"""Tokens of the made-up task: each is followed by one other, always the same. So many fit into
any vocabulary, as a tokenizer has at least the 256 bytes."""


def check_input_use(context: CheckContext) -> Finding:
    """A run: with its weights on validation text. A recipe: after a moment of training.

    The moment is a task that every model learns which looks at the current token at all.
    """
    if context.trained is not None:
        return _trained(context.trained)
    model = context.build()
    successor = torch.randperm(TASK_TOKENS, generator=new_generator(80))
    optimizer = AdamWConfig(lr=3e-3, weight_decay=0.0).build(model.named_parameters())
    model.train()
    for step in range(N_STEPS):
        batch = next_token_batch(_walks(successor, 8, LENGTH + 1, seed=81 + step))
        context.accumulate(model, [batch])
        optimizer.step(min(1.0, (step + 1) / 10))
        optimizer.zero_grad()
    model.eval()
    tokens = _walks(successor, N_WINDOWS, LENGTH + 1, seed=79)
    batch = next_token_batch(tokens)
    generator = new_generator(78)
    replaced = torch.randint(0, TASK_TOKENS, batch.tokens.shape, generator=generator)
    floor = math.log(TASK_TOKENS)
    return _judge(model, batch, replaced, f"after {N_STEPS} steps on a made-up task", floor)


def _walks(successor: Tensor, n: int, length: int, seed: int) -> Tensor:
    """(n, length) tokens, each the successor of the one before; the first is drawn evenly."""
    tokens = torch.randint(0, TASK_TOKENS, (n, 1), generator=new_generator(seed))
    columns = [tokens]
    for _ in range(length - 1):
        columns.append(successor[columns[-1]])
    return torch.cat(columns, dim=1)


def _trained(run: TrainedModel) -> Finding:
    limit = run.unigram_entropy_nats
    limit += UNTRAINED_FRAC * (run.ln_vocab_nats - run.unigram_entropy_nats)
    if run.loss_nats > limit:
        return Finding(
            "not applicable",
            f"validation loss {run.loss_nats:.3f}, unigram entropy {run.unigram_entropy_nats:.3f}",
            "The model has learned too little to tell whether it looks at its input.",
            {"loss_nats": run.loss_nats, "unigram_entropy_nats": run.unigram_entropy_nats},
        )
    found = _on_validation(run, N_WINDOWS)
    if found.verdict == "not applicable" and run.loader.n_windows > N_WINDOWS:
        found = _on_validation(run, MORE_WINDOWS)
    return found


def _on_validation(run: TrainedModel, n_windows: int) -> Finding:
    n_windows = min(n_windows, run.loader.n_windows)
    batches = list(run.loader.window_batches(n_windows, n_windows))
    device = run.model.embed_tokens.weight.device
    batch = batches[0].heads(WINDOW)
    if not (batch.targets != IGNORE).any(dim=1).all():  # long questions: answers come later
        batch = batches[0]
    batch = batch.to(device)
    known = int(batch.tokens.max()) + 1
    replaced = torch.randint(0, known, batch.tokens.shape, generator=new_generator(77)).to(device)
    return _judge(run.model, batch, replaced, "on validation text", run.unigram_entropy_nats)


def _judge(
    model: nn.Module, batch: Batch, replaced: Tensor, where: str, entropy_nats: float
) -> Finding:
    true = _row_means(token_nats(model, *batch))
    random = _row_means(token_nats(model, replaced, *batch[1:]))
    gaps = random - true
    gap = float(gaps.mean())
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    figures = {
        "true_nats": float(true.mean()), "random_nats": float(random.mean()), "gap_nats": gap,
        "gap_error_nats": error, "unigram_entropy_nats": entropy_nats, "sequences": len(gaps),
    }  # fmt: skip
    measured = (
        f"{where}: {true.mean():.3f} nats on the true tokens, {random.mean():.3f} on random ones "
        f"in their place"
    )
    if gap > max(MIN_GAP_NATS, MIN_GAP_ERRORS * error):
        meaning = "The model uses its input: without it, the loss is higher."
        return Finding("pass", measured, meaning, figures)
    if gap > MIN_GAP_NATS:
        meaning = (
            f"The loss is higher without the input, but by {gap / error:.1f} standard errors only: "
            "too little text, or too little training, to tell."
        )
        return Finding("not applicable", measured, meaning, figures)
    meaning = (
        "The input makes no difference: the model knows how frequent tokens are and ignores the "
        f"text before them (unigram entropy {entropy_nats:.3f} nats)."
    )
    return Finding("fail", measured, meaning, figures)


def _row_means(nats: np.ndarray) -> np.ndarray:
    return np.nanmean(nats, axis=1)
