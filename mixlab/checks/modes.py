"""Does evaluation mode switch noise off, and nothing else?

Dropout that stays on makes every figure a draw, and decoding another one. A factor that only
training applies makes a model that is measured and used another one than was trained.
"""

import torch
from torch import nn

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

ROWS, LENGTH = 2, 40


@torch.no_grad()
def check_modes(context: CheckContext) -> Finding:
    """The same tokens twice in evaluation mode, noise as configured; then without, both modes."""
    noisy = (context.build_noisy or context.build)().eval()
    noise = _difference(noisy, noisy)
    quiet = context.probe()
    modes = _difference(quiet.train(), pristine(quiet).eval())
    figures = {"twice": noise, "modes": modes}
    measured = (
        f"in evaluation mode, logits of the same tokens differ by {noise:.1e} of their size the "
        f"second time; without noise, training mode differs from it by {modes:.1e}"
    )
    if noise > ROUNDING:
        meaning = (
            "The model draws at random where it is measured and used: look for dropout or noise "
            "that does not ask `self.training`. Checks that compare two calls fail with it."
        )
    elif modes > ROUNDING:
        meaning = (
            "What is measured and used is not what is trained: something besides noise depends on "
            "`self.training`."
        )
    else:
        meaning = "What is measured is what was trained, without its noise."
        return Finding("pass", measured, meaning, figures)
    return Finding("fail", measured, meaning, figures)


def _difference(first: nn.Module, second: nn.Module) -> float:
    tokens = random_tokens(first, ROWS, LENGTH, seed=12)
    return max(
        relative_difference(
            logits_of(first, tokens, loops=loops), logits_of(second, tokens, loops=loops)
        )
        for loops in loop_settings(first, thorough=False)
    )
