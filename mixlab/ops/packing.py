"""Which tokens of a packed row belong together, in the forms that kernels ask for.

Several documents may share one row of a batch. Nothing may flow from one to the next: attention
is masked and recurrent state is reset where a document ends.
"""

import torch
from torch import Tensor


class Packing:
    """Document numbers of every token of a batch, with derived forms computed once and kept.

    `ids` is (B, T), integer, non-decreasing along T; equal neighbours are of one document.
    `prefix` is (B, T) bool: tokens of a prompt, which stand at the head of their document and see
    each other both ways (prefix-LM [arXiv:1910.10683]). Only attention can do that.
    """

    def __init__(self, ids: Tensor, prefix: Tensor | None = None) -> None:
        self.ids, self.prefix = ids, prefix
        self._masks: dict[int | None, Tensor] = {}
        self._cu_seqlens: Tensor | None = None

    @classmethod
    def whole_prefix(cls, tokens: Tensor) -> "Packing":
        """Prompts alone, (B, T), each read both ways: for the first call of a prefix-LM."""
        return cls(torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))

    def is_start(self) -> Tensor:
        """(B, T) bool, true at the first token of a document; column 0 is always a start."""
        starts = torch.ones_like(self.ids, dtype=torch.bool)
        starts[:, 1:] = self.ids[:, 1:] != self.ids[:, :-1]
        return starts

    def position_in_document(self) -> Tensor:
        """(B, T) int64, how many tokens of the same document stand before each token in its row."""
        index = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        start_index = torch.where(self.is_start(), index, 0).cummax(dim=1).values
        return index - start_index

    def cu_seqlens(self) -> Tensor:
        """(n_documents + 1,) int32 offsets into the flattened (B * T) tokens.

        The length depends on the data, so on a GPU this waits for the device; kept after that.
        """
        if self._cu_seqlens is None:
            flat = self.is_start().flatten().nonzero().flatten()
            end = flat.new_full((1,), self.ids.numel())
            self._cu_seqlens = torch.cat([flat, end]).to(torch.int32)
        return self._cu_seqlens

    def mask(self, window: int | None = None) -> Tensor:
        """(B, 1, T, T) bool, true where query t may look at key s: causal, same document, near.

        Within a prefix, s may also come after t, as near as it may come before.
        """
        if window not in self._masks:
            same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
            seen = causal_mask(self.ids.shape[1], self.ids.shape[1], window, self.ids.device)
            if self.prefix is not None:
                both = self.prefix[:, None, :, None] & self.prefix[:, None, None, :]
                seen = seen | (both & seen.mT)
            self._masks[window] = same & seen
        return self._masks[window]


def causal_mask(n_queries: int, n_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool for queries that are the last `n_queries` of `n_keys` positions.

    With a window, a query sees itself and the `window - 1` keys before it.
    """
    t = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    s = torch.arange(n_keys, device=device)[None, :]
    allowed = s <= t
    return allowed if window is None else allowed & (t - s < window)
