"""Does writing token by token compute what training computes on whole sequences?"""

import torch
from torch import Tensor

from mixlab.checks.base import (
    ROUNDING,
    CheckContext,
    Finding,
    logits_of,
    random_tokens,
    relative_difference,
)
from mixlab.checks.loops import loop_settings
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops

LENGTH = 76
"""Past 64, the usual chunk of chunked kernels, with room for steps on both sides."""
N_STEPS = 6
MAX_LENGTH = 2048
"""Windows that are longer are not looked beyond."""


@torch.no_grad()
def check_stepwise(context: CheckContext) -> Finding:
    """Single tokens, then many at once, then single tokens, all through the state."""
    model = context.probe()
    length = _length(model)
    tokens = random_tokens(model, 2, length, seed=6)
    settings = loop_settings(model, thorough=context.thorough)
    difference = max(_difference(model, tokens, loops) for loops in settings)
    figures = {"difference": difference, "length": length}
    measured = f"logits differ by {difference:.1e} of their size over {length} tokens"
    if difference <= ROUNDING:
        meaning = "Text is written by the same function that was trained."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "What the model writes does not come from what was trained: its decoding state loses or "
        "adds something. Losses may be right and samples still be noise."
    )
    return Finding("fail", measured, meaning, figures)


def _length(model: LanguageModel) -> int:
    """Long enough for every window to have dropped tokens when the last ones are written."""
    windows = model.cfg.windows(model.cfg.max_seq_len) - {None}
    longest = max((w for w in windows if w <= MAX_LENGTH), default=0)
    return max(LENGTH, longest + 2 * N_STEPS)


def _difference(model: LanguageModel, tokens: Tensor, loops: Loops | None) -> float:
    """Of a looped model, at this depth and exit rule."""
    parallel = logits_of(model, tokens, loops=loops)
    state, pieces = model.initial_state(tokens.shape[0]), []
    arguments = {} if loops is None else {"loops": loops}
    pieces_of = [1] * N_STEPS + [tokens.shape[1] - 2 * N_STEPS] + [1] * N_STEPS
    for piece in tokens.split(pieces_of, dim=1):
        out = model(piece, state, **arguments)
        state = out.state
        pieces.append(out.logits)
    return relative_difference(torch.cat(pieces, dim=1), parallel)
