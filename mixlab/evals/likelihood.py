"""How likely a model finds given text: one forward pass over context and continuation.

The figure of a request does not depend on what it is batched with: rows are padded at the end,
where a causal model cannot see them, and no token of a mixture of experts is ever dropped.
Shapes: B rows, T tokens, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.core.errors import LabError
from mixlab.nn.evaluating import evaluating
from mixlab.nn.language_model import LanguageModel
from mixlab.ops.cross_entropy import IGNORE, score_tokens
from mixlab.ops.packing import Packing

Advance = Callable[[int], None]


class Request(NamedTuple):
    """`continuation` after `context`; with no context, as the beginning of a document."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    nats: float  # minus the natural logarithm of the continuation's probability
    is_greedy: bool  # each of its tokens was the likeliest one
    n_tokens: int  # of the continuation
    n_dropped: int  # tokens cut from the start of the context, for which there was no room


class Scorer:
    """Scores requests with one model.

    `eos_id` stands before text that begins a document, as in training: the first token is
    predicted from it, later tokens do not see it. With `prefix_lm`, tokens of the context see each
    other both ways, as such a model reads its prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        eos_id: int,
        *,
        compute_dtype: torch.dtype | None = None,
        prefix_lm: bool = False,
        batch_tokens: int = 8192,
    ) -> None:
        self.model, self.eos_id, self._prefix_lm = model, eos_id, prefix_lm
        self.compute_dtype, self.batch_tokens = compute_dtype, batch_tokens

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence, context and continuation together."""
        return self.model.cfg.max_seq_len

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], advance: Advance = lambda n: None
    ) -> list[Likelihood]:
        """The likelihood of each request, in their order; `advance` counts requests.

        Raises:
            LabError: a continuation is empty, or longer than the model's longest sequence.
        """
        fitted = [self._fit(request) for request in requests]
        found: list[Likelihood | None] = [None] * len(requests)
        with evaluating(self.model):
            for batch in self._batches(fitted):
                rows = [fitted[i] for i in batch]
                for i, (nats, is_greedy) in zip(batch, self._score(rows), strict=True):
                    n_dropped = len(requests[i].context) - len(fitted[i].context)
                    n_tokens = len(requests[i].continuation)
                    found[i] = Likelihood(nats, is_greedy, n_tokens, n_dropped)
                advance(len(batch))
        return [likelihood for likelihood in found if likelihood is not None]

    def _fit(self, request: Request) -> Request:
        """Cut the start of the context off where the whole is too long."""
        context, continuation = request
        n = len(continuation)
        if not 1 <= n <= self.max_len:
            raise LabError(
                f"continuation of {n} tokens: expected 1 to model.max_seq_len = {self.max_len}."
            )
        room = self.max_len - n
        return Request(context[max(0, len(context) - room) :] if room else (), continuation)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Places of requests of similar length, longest first, so that memory fails early."""
        lengths = [max(1, len(r.context)) + len(r.continuation) - 1 for r in requests]
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        while order:
            n = max(1, self.batch_tokens // lengths[order[0]])
            yield order[:n]
            order = order[n:]

    def _score(self, rows: Sequence[Request]) -> Iterable[tuple[float, bool]]:
        tokens, targets, packing = self._tensors(rows)
        h = final_states(self.model, tokens, packing, self.compute_dtype)
        wanted = targets != IGNORE  # (B, T)
        scores = score_tokens(
            h[wanted], self.model.head_weight, targets[wanted], compute_dtype=self.compute_dtype
        )
        row = wanted.nonzero()[:, 0]
        nats = torch.zeros(len(rows), dtype=torch.float64, device=row.device)
        nats.index_add_(0, row, scores.nats.double())
        misses = torch.zeros(len(rows), dtype=torch.int64, device=row.device)
        misses.index_add_(0, row, (~scores.is_correct).long())
        return zip(nats.tolist(), (misses == 0).tolist(), strict=True)

    def _tensors(self, rows: Sequence[Request]) -> tuple[Tensor, Tensor, Packing | None]:
        """Tokens and targets (B, T), and a packing where one is needed."""
        sequences = [[*(r.context or (self.eos_id,)), *r.continuation] for r in rows]
        T = max(map(len, sequences)) - 1
        tokens = torch.full((len(rows), T), self.eos_id)
        targets = torch.full((len(rows), T), IGNORE)
        for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
            end, n = len(sequence) - 1, len(row.continuation)
            tokens[i, :end] = torch.tensor(sequence[:-1])
            targets[i, end - n : end] = torch.tensor(list(row.continuation))
        device, packing = self.model.embed_tokens.weight.device, None
        if self._prefix_lm or any(not r.context for r in rows):
            begins = torch.tensor([[not r.context] for r in rows])
            segments = (begins & (torch.arange(T) > 0)).to(torch.int32)
            prefix = None
            if self._prefix_lm:
                lengths = torch.tensor([[len(r.context)] for r in rows])
                prefix = (torch.arange(T) < lengths).to(device)
            packing = Packing(segments.to(device), prefix)
        return tokens.to(device), targets.to(device), packing


def final_states(
    model: LanguageModel,
    tokens: Tensor,
    packing: Packing | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """(B, T) tokens to (B, T, D), ready for the head, in the precision that the model trains in."""
    dtype = compute_dtype or torch.bfloat16
    with torch.autocast(tokens.device.type, dtype=dtype, enabled=compute_dtype is not None):
        return model.trunk(tokens, None, packing).h


def rolling(tokens: Sequence[int], window: int, overlap: int) -> list[Request]:
    """Requests that score each token of a document once.

    The first `window` tokens begin the document; each further request scores `window - overlap`
    tokens after the `overlap` tokens before them.
    """
    if not 1 <= overlap < window:
        raise LabError(f"overlap = {overlap}: expected 1 to window - 1 = {window - 1}.")
    requests = [Request((), tokens[:window])]
    for start in range(window, len(tokens), window - overlap):
        end = start + window - overlap
        requests.append(Request(tokens[start - overlap : start], tokens[start:end]))
    return requests
