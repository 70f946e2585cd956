"""Do documents that share a row of a batch see each other?"""

import torch

from mixlab.checks.base import (
    ROUNDING,
    CheckContext,
    Finding,
    logits_of,
    other_tokens,
    random_tokens,
    relative_difference,
)
from mixlab.checks.loops import loop_settings
from mixlab.nn.language_model import LanguageModel
from mixlab.nn.recursion.loop_pass import Loops

LENGTHS = (37, 1, 2, 30)
"""One document past half a usual chunk, two shorter than a convolution, one that meets them all."""


@torch.no_grad()
def check_packing(context: CheckContext) -> Finding:
    """Each document packed with others, against alone, and with the first one replaced."""
    model = context.probe()
    settings = loop_settings(model, thorough=context.thorough)
    found = [_differences(model, loops) for loops in settings]
    against_alone, effect = (max(column) for column in zip(*found, strict=True))
    figures = {"against_alone": against_alone, "effect_of_first_document": effect}
    measured = (
        f"packed and alone differ by {against_alone:.1e} of the logits' size; replacing the first "
        f"document moves the others by {effect:.1e}"
    )
    if max(against_alone, effect) <= ROUNDING:
        meaning = "Documents that share a row are computed as if each were alone."
        return Finding("pass", measured, meaning, figures)
    meaning = (
        "A document is predicted from the unrelated one before it: an attention mask, a recurrent "
        "state or a convolution's tail crosses the boundary. The model trains on texts that do "
        "not exist."
    )
    return Finding("fail", measured, meaning, figures)


def _differences(model: LanguageModel, loops: Loops | None) -> tuple[float, float]:
    """Packed against alone, and the effect that replacing the first document has on the others."""
    segments = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]
    tokens = random_tokens(model, 1, sum(LENGTHS), seed=20)
    pieces = tokens.split(LENGTHS, dim=1)
    alone = torch.cat([logits_of(model, piece, loops=loops) for piece in pieces], dim=1)
    packed = logits_of(model, tokens, segments, loops)
    changed = tokens.clone()
    changed[:, : LENGTHS[0]] = other_tokens(model, tokens[:, : LENGTHS[0]], seed=21)
    after = logits_of(model, changed, segments, loops)
    against_alone = relative_difference(packed, alone)
    effect = relative_difference(packed[:, LENGTHS[0] :], after[:, LENGTHS[0] :])
    return against_alone, effect
