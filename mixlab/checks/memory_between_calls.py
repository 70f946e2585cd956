"""Does anything of one batch survive into the next?

A state that is carried from batch to batch belongs to other texts than those it is then used on.
The model learns to ignore its input, and in evaluation one text helps or harms the next.
"""

import itertools

import torch

from mixlab.checks.base import (
    ROUNDING,
    CheckContext,
    Finding,
    logits_of,
    pristine,
    random_tokens,
    relative_difference,
)
from mixlab.checks.loops import loop_settings

LENGTH = 24


@torch.no_grad()
def check_memory_between_calls(context: CheckContext) -> Finding:
    """Batch B after batch A, against B as the first call of an equal model."""
    model = context.probe()
    a, b = (random_tokens(model, 3, LENGTH, seed=seed) for seed in (9, 10))
    worst = 0.0
    settings = loop_settings(model, thorough=context.thorough)
    for is_training, loops in itertools.product((True, False), settings):
        model.train(is_training)
        fresh, used = pristine(model), pristine(model)
        logits_of(used, a, loops=loops)
        logits_of(used, a, loops=loops)
        first, second = logits_of(fresh, b, loops=loops), logits_of(used, b, loops=loops)
        worst = max(worst, relative_difference(first, second))
        arguments = {} if loops is None else {"loops": loops}
        used(a, used.initial_state(3), **arguments)
        decoded = used(b, used.initial_state(3), **arguments).logits
        first = fresh(b, fresh.initial_state(3), **arguments).logits
        worst = max(worst, relative_difference(decoded, first))
    figures = {"difference": worst}
    measured = f"an earlier batch moves the next one's logits by {worst:.1e} of their size"
    if worst <= ROUNDING:
        meaning = "A call depends on its own tokens only."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "Something of one batch is still there in the next, which holds other texts: the model is "
        "trained and measured on a mixture of unrelated sequences. Keep states with their example, "
        "and start every call afresh."
    )
    return Finding("fail", measured, meaning, figures)
