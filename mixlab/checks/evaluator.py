"""Is a reported loss as exact as its digits, and is it what the logits say?

A cross-entropy in bfloat16 has steps of 0.03 at a loss of 7.6: whole studies then lie on a few
neighbouring values of that grid.
"""

import numpy as np
import torch

from mixlab.checks.base import CheckContext, Finding, next_token_batch, random_tokens, vocab_size
from mixlab.checks.oracle import token_nats

N_BATCHES = 4
LENGTH = 32
TOLERANCE = 2.0**-14
"""Of the loss. Float32 logits and sums err by about 1e-6 of it, bfloat16 by 1e-3 to 1e-2."""


def check_evaluator(context: CheckContext) -> Finding:
    """The evaluator on four batches, against a cross-entropy in NumPy float64."""
    model = context.build().eval()  # in the precision that it is kept in
    token_bytes = np.ones(vocab_size(model), dtype=np.float32)
    differences, on_grid = [], 0
    for i in range(N_BATCHES):
        batch = next_token_batch(random_tokens(model, 3, LENGTH + 1, seed=60 + i))
        reported = float(context.evaluate(model, [batch], token_bytes)[0])
        expected = float(token_nats(model, batch.tokens, batch.targets, batch.segments).mean())
        differences.append(abs(reported - expected) / expected)
        on_grid += float(torch.tensor(reported).bfloat16()) == reported
    worst = max(differences)
    figures = {"difference": worst, "values_on_a_bfloat16_grid": on_grid, "values": N_BATCHES}
    measured = (
        f"reported and independent loss differ by {worst:.1e} of the loss; {on_grid} of "
        f"{N_BATCHES} values lie on bfloat16's grid"
    )
    # One float32 in 65,536 lies on that grid by chance.
    if worst <= TOLERANCE and on_grid < N_BATCHES:
        meaning = "Reported losses are exact to more digits than are printed."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Reported losses are rounded or are not the cross-entropy of the model's logits: small "
        "differences between runs mean nothing. Compute head, softmax and sums in float32."
    )
    return Finding("fail", measured, meaning, figures)
