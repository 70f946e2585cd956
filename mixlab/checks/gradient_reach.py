"""Does training reach every parameter?"""

import torch
from torch import Tensor, nn

from mixlab.checks.base import (
    CheckContext,
    Finding,
    next_token_batch,
    random_tokens,
    vocab_size,
)

LENGTH = 32
ROWS_PER_ROUND = 8
MAX_ROUNDS = 20
"""Rounds of random tokens and weights; only what no round reaches counts as out of reach. A router
may leave a third of its experts idle on any one draw of its weights, but hardly the same ones on
twenty."""


def check_gradient_reach(context: CheckContext) -> Finding:
    """After a random move of all weights, so that gates which start at 0 hide nothing.

    Stacks of matrices, such as experts, are looked at one by one. Whether a router *uses* all of
    its experts is another question, which the metrics of a run answer.
    """
    model = context.probe()
    pieces = {name: torch.zeros(_n_pieces(p), dtype=torch.bool) for name, p in _trainable(model)}
    n_rounds = n_tokens = 0
    while n_rounds < MAX_ROUNDS and not all(reached.all() for reached in pieces.values()):
        if n_rounds:
            model = context.probe(seed=n_rounds, noise_frac=1.0)
        model.train()
        tokens = random_tokens(model, ROWS_PER_ROUND, LENGTH + 1, seed=11 + n_rounds)
        context.accumulate(model, [next_token_batch(tokens)])
        for name, parameter in _trainable(model):
            if parameter.grad is not None:
                pieces[name] |= _reached(parameter.grad)
                parameter.grad = None
        n_rounds, n_tokens = n_rounds + 1, n_tokens + ROWS_PER_ROUND * LENGTH
    missing = [
        f"{name}[{i}]" if len(reached) > 1 else name
        for name, reached in pieces.items()
        for i in (~reached).nonzero().flatten().tolist()
    ]
    frozen = _frozen(model)
    missing += frozen
    if pieces and not missing and _is_tied_in_vain(context):
        missing.append("embed_tokens.weight as the head, which tie_embeddings says it is")
    n_pieces = sum(len(reached) for reached in pieces.values()) + len(frozen)
    figures = {"missing": missing, "n_pieces": n_pieces, "n_tokens": n_tokens}
    measured = f"{n_pieces - len(missing)} of {n_pieces} parameter tensors have a gradient"
    if not pieces:
        return Finding("not applicable", "no parameter takes gradients", "Nothing is trained.", {})
    if not missing:
        meaning = "Every part of the model is trained by the loss."
        return Finding("pass", measured, meaning, figures)
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    meaning = (
        f"The loss never changes {', '.join(missing[:3])}{more}: weights that are counted, stored "
        "and said to be trained, but do nothing or stay as they are."
    )
    return Finding("fail", measured, meaning, figures)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _frozen(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


def _is_tied_in_vain(context: CheckContext) -> bool:
    """Whether a head that is said to be the embedding is another matrix, or not trained.

    Every row of a head has a gradient, also that of a token which no text holds.
    """
    model = context.probe()
    if not model.cfg.tie_embeddings or not model.embed_tokens.weight.requires_grad:
        return False
    model.train()
    n_used = max(1, vocab_size(model) // 2)
    tokens = random_tokens(model, ROWS_PER_ROUND, LENGTH + 1, seed=10) % n_used
    context.accumulate(model, [next_token_batch(tokens)])
    grad = model.embed_tokens.weight.grad
    return grad is None or not bool((grad[n_used:] != 0).any())


def _n_pieces(parameter: Tensor) -> int:
    return parameter.shape[0] if parameter.ndim > 2 else 1


def _reached(grad: Tensor) -> Tensor:
    """(n_pieces,) bool: some number of the piece has a finite gradient that is not zero."""
    rows = grad.flatten(1) if grad.ndim > 2 else grad.reshape(1, -1)
    return ((rows != 0) & rows.isfinite()).any(dim=1)
