"""Where does the loss stand: at ln V before training, and below the unigram entropy after it?"""

import math

from mixlab.checks.base import CheckContext, Finding, TrainedModel, random_tokens, vocab_size
from mixlab.checks.oracle import token_nats

N_ROWS = 4
LENGTH = 64
MAX_ABOVE_NATS = 1.0
"""Logits of unit variance, the largest that a sound start has, cost half a nat."""
MAX_BELOW_NATS = 0.1
"""Targets are drawn at random, so nothing can be below ln V but by chance: the mean of a few
hundred tokens is off by a few hundredths of a nat."""
UNIGRAM_BAND = 0.02
"""Share of the entropy within which a loss counts as standing at it."""
STALLED_NATS = 0.05
"""A loss that fell by less over the second half has come to rest."""


def check_unigram(context: CheckContext) -> Finding:
    """A run: its loss against the unigram entropy. A recipe: its first loss against ln V."""
    if context.trained is not None:
        return _trained(context.trained)
    model = context.build().eval()
    tokens = random_tokens(model, N_ROWS, LENGTH + 1, seed=70)
    loss = float(token_nats(model, tokens[:, :-1], tokens[:, 1:]).mean())
    ln_vocab = math.log(vocab_size(model))
    figures = {"initial_loss_nats": loss, "ln_vocab_nats": ln_vocab}
    measured = f"loss {loss:.3f} before training, uniform guessing {ln_vocab:.3f} nats"
    if -MAX_BELOW_NATS <= loss - ln_vocab <= MAX_ABOVE_NATS:
        meaning = "The model starts without an opinion, as it should."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Random tokens cannot be predicted better than by guessing: the model sees its answers."
        if loss < ln_vocab
        else "The first logits are far too large: training begins by unlearning them. Look at the "
        "initial weights of embedding and head."
    )
    return Finding("fail", measured, meaning, figures)


def _trained(run: TrainedModel) -> Finding:
    loss, entropy = run.loss_nats, run.unigram_entropy_nats
    earlier = run.earlier_loss_nats
    figures = {
        "loss_nats": loss, "unigram_entropy_nats": entropy, "ln_vocab_nats": run.ln_vocab_nats,
        "earlier_loss_nats": earlier,
    }  # fmt: skip
    distance = entropy - loss
    side = "below" if distance >= 0 else "above"
    measured = f"validation loss {loss:.3f}, {abs(distance):.3f} nats {side} the unigram entropy"
    if distance > UNIGRAM_BAND * entropy:
        meaning = "No model that ignores its context can have this loss."
        return Finding("pass", measured, meaning, figures)
    has_stalled = earlier is not None and earlier - loss < STALLED_NATS
    if abs(distance) <= UNIGRAM_BAND * entropy and has_stalled:
        meaning = (
            "The loss came to rest where a model lies that knows how frequent tokens are and "
            "nothing else: it ignores its input."
        )
        return Finding("fail", measured, meaning, figures)
    meaning = "Training has not come down to where context shows; train longer to be able to tell."
    return Finding("not applicable", measured, meaning, figures)
