"""Which tokens of a packed row belong together, in the forms that kernels ask for.

Several documents may share one row of a batch. Nothing may flow from one to the next: attention
is masked and recurrent state is reset where a document ends.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

CHUNK = 64
"""Tokens that the kernels of the gated delta rule work on at a time."""
_PER_DOCUMENT = ("cu_seqlens", "chunk_indices", "chunk_offsets")


class Packing:
    """Document numbers of every token of a batch, with the forms that kernels take.

    `ids` is (B, T), integer, non-decreasing along T; equal neighbours are of one document.
    `prefix` is (B, T) bool: tokens of a prompt, which stand at the head of their document and see
    each other both ways (prefix-LM [arXiv:1910.10683]). Only attention can do that.

    Everything but the masks is worked out at once, so that compiled code meets plain tensors. The
    number of documents depends on the data: made from tensors on a GPU, this waits for the device,
    and made on the CPU and moved with `to`, it does not.

    Attributes:
        position: (B, T) int32, tokens of the same document before each token in its row.
        cu_seqlens: (n_documents + 1,) int32, offsets into the flattened (B * T) tokens.
        cu_seqlens_cpu: the same on the CPU, for kernels that plan their work there.
        is_whole: every row is a single document.
        chunk_indices, chunk_offsets: see `chunk_table`, on the device.
    """

    def __init__(self, ids: Tensor, prefix: Tensor | None = None) -> None:
        self.ids, self.prefix = ids, prefix
        n_rows, n_tokens = ids.shape
        starts = self.is_start()
        index = torch.arange(n_tokens, device=ids.device, dtype=torch.int32).expand_as(ids)
        first = torch.where(starts, index, 0).cummax(dim=1).values
        self.position = (index - first).to(torch.int32)
        flat = starts.flatten().nonzero().flatten()
        end = flat.new_full((1,), ids.numel())
        self.cu_seqlens = torch.cat([flat, end]).to(torch.int32)
        self.cu_seqlens_cpu = self.cu_seqlens.cpu()
        self.is_whole = len(flat) == n_rows
        table = chunk_table(self.cu_seqlens_cpu)
        self.chunk_indices, self.chunk_offsets = (x.to(ids.device) for x in table)
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def whole_prefix(cls, tokens: Tensor) -> "Packing":
        """Prompts alone, (B, T), each read both ways: for the first call of a prefix-LM."""
        return cls(torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))

    def pinned(self) -> "Packing":
        """The same in memory that a GPU copies from without anybody waiting."""
        return self._with(lambda part: part.pin_memory())

    def to(self, device: torch.device) -> "Packing":
        """The same on `device`; pinned parts go to a GPU without waiting for the copies."""
        if self.ids.device == device:
            return self
        moved = self._with(lambda part: part.to(device, non_blocking=part.is_pinned()))
        return moved

    def write_into(self, other: "Packing") -> None:
        """Copy what kernels read to where `other` has it; shapes must agree. Waits for nothing."""
        for name in ("ids", "position", *_PER_DOCUMENT):
            getattr(other, name).copy_(getattr(self, name), non_blocking=True)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Packing":
        other = object.__new__(Packing)
        for name in ("ids", "prefix", "position", *_PER_DOCUMENT):
            part = getattr(self, name)
            setattr(other, name, None if part is None else change(part))
        other.cu_seqlens_cpu, other.is_whole = self.cu_seqlens_cpu, self.is_whole
        other._masks = {}
        return other

    def padded(self, n_documents: int) -> "Packing":
        """The same with empty documents at the end, `n_documents` together, of which one at least.

        The tables then have lengths that depend on the shape of the batch and on `n_documents`
        alone: for updates that are recorded once and used for batches of other documents.
        """
        n_empty = n_documents + 1 - len(self.cu_seqlens)
        assert n_empty > 0, "an empty document must be there for what has no chunk"
        other = self._with(lambda part: part)
        other.cu_seqlens = _extended(self.cu_seqlens, n_empty)
        other.cu_seqlens_cpu = _extended(self.cu_seqlens_cpu, n_empty)
        other.chunk_offsets = _extended(self.chunk_offsets, n_empty)
        # A document's last chunk may be short, so there are at most this many.
        n_chunks = self.ids.numel() // CHUNK + n_documents
        spare = self.chunk_indices.new_zeros(n_chunks - len(self.chunk_indices), 2)
        spare[:, 0] = n_documents - 1
        other.chunk_indices = torch.cat([self.chunk_indices, spare])
        return other

    def is_start(self) -> Tensor:
        """(B, T) bool, true at the first token of a document; column 0 is always a start."""
        starts = torch.ones_like(self.ids, dtype=torch.bool)
        starts[:, 1:] = self.ids[:, 1:] != self.ids[:, :-1]
        return starts

    def prepare(self, windows: Iterable[int | None]) -> None:
        """Be ready for compiled code; `windows` are those that attention will ask masks for.

        Compiled code would make the masks itself, once in every layer. Kernels on a GPU read
        `cu_seqlens`, except for prompts that are read both ways.
        """
        for name in _PER_DOCUMENT:  # their lengths differ batch by batch: no reason to recompile
            torch._dynamo.maybe_mark_dynamic(getattr(self, name), 0)
        if self.ids.device.type == "cpu" or self.prefix is not None:
            for window in windows:
                self.mask(window)

    def mask(self, window: int | None = None) -> Tensor:
        """(B, 1, T, T) bool, true where query t may look at key s: causal, same document, near.

        Within a prefix, s may also come after t, as near as it may come before. Made at the first
        call for a window, and kept.
        """
        if window not in self._masks:
            same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
            seen = causal_mask(self.ids.shape[1], self.ids.shape[1], window, self.ids.device)
            if self.prefix is not None:
                both = self.prefix[:, None, :, None] & self.prefix[:, None, None, :]
                seen = seen | (both & seen.mT)
            self._masks[window] = same & seen
        return self._masks[window]


def _extended(offsets: Tensor, n: int) -> Tensor:
    return torch.cat([offsets, offsets[-1:].expand(n)])


def chunk_table(cu_seqlens: Tensor, size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Documents cut into chunks of `size` tokens, the last of each shorter; both int32.

    Returns which document each chunk is of and which one within it, (n_chunks, 2), and the first
    chunk of each document and the end, (n_documents + 1,).
    """
    counts = (cu_seqlens.diff() + size - 1) // size
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    document = torch.arange(len(counts), dtype=torch.int32, device=counts.device)
    document = document.repeat_interleave(counts)
    index = torch.arange(len(document), dtype=torch.int32, device=counts.device)
    return torch.stack([document, index - offsets[document]], dim=1), offsets


def causal_mask(n_queries: int, n_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool for queries that are the last `n_queries` of `n_keys` positions.

    With a window, a query sees itself and the `window - 1` keys before it.
    """
    t = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    s = torch.arange(n_keys, device=device)[None, :]
    allowed = s <= t
    return allowed if window is None else allowed & (t - s < window)
