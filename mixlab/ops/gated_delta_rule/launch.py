"""The delta rule by the Triton kernels of this package: what is launched on what.

The kernels themselves, and what they compute, are in `triton_kernels`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.ops.gated_delta_rule.kernel_ops import CHUNK, Documents
from mixlab.ops.packing import chunk_table


class Tiling(NamedTuple):
    """How a kernel cuts its work: columns of a tile, warps of a program, stages of its loads."""

    columns: int
    warps: int
    stages: int
    depth: int = 64  # columns of the tiles that a program runs over


TILINGS = {
    "prepare": Tiling(64, 4, 3),
    "scan_states": Tiling(64, 4, 1),
    "scan_outputs": Tiling(64, 8, 2),
    "scan_gradients": Tiling(64, 8, 2),
    "score_gradients": Tiling(64, 4, 3),
    "key_gradients": Tiling(64, 4, 3),
}


WIDTHS = (64, 128, 256)
"""Key widths; a program holds whole keys, and value columns in blocks of 64."""
MEMORY = {64: 60_000, 128: 110_000, 256: 190_000}
"""Shared memory, in bytes, that the largest program of a key width asks for."""


def obstacle(capability: int, shared_memory: int, k_dim: int, v_dim: int) -> str | None:
    """Why such heads cannot be taken by a GPU; None if they can."""
    if k_dim not in WIDTHS or v_dim % 64:
        return (
            f"it takes keys of {', '.join(map(str, WIDTHS))} and values of a multiple of 64, and "
            f"these are {k_dim} and {v_dim} wide"
        )
    if capability < 8:
        return f"it needs compute capability 8 or newer, and the GPU has {capability}"
    if shared_memory < MEMORY[k_dim]:
        return f"heads of {k_dim} need {MEMORY[k_dim]} bytes of shared memory, {shared_memory} here"
    return None


class _Call(NamedTuple):
    """Inputs of the kernels, contiguous, (1, M, heads, ...) or (B, T, heads, ...)."""

    q: Tensor
    k: Tensor
    v: Tensor
    b: Tensor
    g: Tensor
    kept: Tensor  # (2, ..., H, C), the inverse of I + A and P
    documents: Documents

    @property
    def n_chunks(self) -> int:
        return len(self.documents.chunk_indices)

    @property
    def n_heads(self) -> int:
        return self.v.shape[2]

    @property
    def scale(self) -> float:
        return self.k.shape[-1] ** -0.5

    @property
    def by_chunk(self) -> tuple[Tensor, Tensor]:
        return self.documents.cu_seqlens, self.documents.chunk_indices

    @property
    def by_document(self) -> tuple[Tensor, Tensor]:
        return self.documents.cu_seqlens, self.documents.chunk_offsets

    def lanes(self, columns: int) -> tuple[int]:
        """Programs of a scan: documents times heads times blocks of columns."""
        n_documents = len(self.documents.cu_seqlens) - 1
        return (n_documents * self.n_heads * (self.v.shape[-1] // columns),)

    def states(self) -> Tensor:
        return self.k.new_empty(self.n_chunks, self.n_heads, self.k.shape[-1], self.v.shape[-1])

    def sizes(self, names: str) -> dict[str, int]:
        k, v = self.k, self.v
        sizes = {"G": k.shape[2], "H": v.shape[2], "K": k.shape[-1], "V": v.shape[-1], "C": CHUNK}
        return {name: sizes[name] for name in names}


def forward(q, k, v, log_a, b, state, documents: Documents | None, final_state):
    """As `kernel_ops.Kernel` says."""
    documents = documents or whole_rows(*v.shape[:2], v.device)
    call = _prepare(q, k, v, log_a, b, documents)
    o, final = torch.empty_like(v), None
    if final_state:
        shape = (len(documents.cu_seqlens) - 1, v.shape[2], k.shape[-1], v.shape[-1])
        final = v.new_empty(shape, dtype=torch.float32)
    _scan_states(call, state, o, final, None, None)
    return o, final, call.g, call.kept


def backward(q, k, v, g, b, kept, state, do, dstate, documents: Documents | None):
    """As `kernel_ops.Kernel` says."""
    call = _Call(q, k, v, b, g, kept, documents or whole_rows(*v.shape[:2], v.device))
    states, writes = call.states(), torch.empty_like(v)
    _scan_states(call, state, None, None, states, writes)
    dstates, dx, dinitial = _scan_gradients(call, do, dstate, state)
    dp, da, dv, db_v = _score_gradients(call, writes, do, dx)
    dq, dk, dg, db = _key_gradients(call, states, dstates, writes, do, dx, dp, da)
    return dq, dk, dv, *_sum_parts(call, dg, db, db_v), dinitial


@lru_cache(maxsize=16)
def whole_rows(n_rows: int, n_tokens: int, device: torch.device) -> Documents:
    """The tables of rows that are a document each."""
    cu_seqlens = torch.arange(n_rows + 1, dtype=torch.int32) * n_tokens
    return Documents(*(x.to(device) for x in (cu_seqlens, *chunk_table(cu_seqlens, CHUNK))))


def _launch(name: str) -> dict[str, int]:
    return {"num_warps": TILINGS[name].warps, "num_stages": TILINGS[name].stages}


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, documents: Documents
) -> _Call:
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_prepare

    kept = k.new_empty(2, *b.shape, CHUNK)
    call = _Call(q, k, v, b, torch.empty_like(b), kept, documents)
    delta_prepare[call.n_chunks, call.n_heads](
        q, k, log_a, b, call.g, *kept, *call.by_chunk, call.scale,
        **call.sizes("GHKC"), BK=min(k.shape[-1], TILINGS["prepare"].columns),
        **_launch("prepare"),
    )  # fmt: skip
    return call


def _scan_states(
    call: _Call, first: Tensor | None, o: Tensor | None, final: Tensor | None,
    states: Tensor | None, writes: Tensor | None,
) -> None:  # fmt: skip
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_scan_states

    name = "scan_states" if o is None else "scan_outputs"
    columns = min(call.v.shape[-1], TILINGS[name].columns)
    delta_scan_states[call.lanes(columns)](
        call.q, call.k, call.v, call.b, call.g, *call.kept, first, o, final, states, writes,
        *call.by_document, call.scale,
        **call.sizes("GHKVC"), BV=columns,
        HAS_FIRST=first is not None, HAS_FINAL=final is not None, READS=o is not None,
        **_launch(name),
    )  # fmt: skip


def _scan_gradients(
    call: _Call, do: Tensor, dfinal: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_scan_gradients

    dstates, dx = call.states(), torch.empty_like(call.v)
    dfirst = None if first is None else torch.empty_like(first)
    columns = min(call.v.shape[-1], TILINGS["scan_gradients"].columns)
    delta_scan_gradients[call.lanes(columns)](
        call.q, call.k, call.b, call.g, *call.kept, do, dfinal, dfirst, dstates, dx,
        *call.by_document, call.scale,
        **call.sizes("GHKVC"), BV=columns,
        HAS_FIRST=first is not None, HAS_FINAL=dfinal is not None,
        **_launch("scan_gradients"),
    )  # fmt: skip
    return dstates, dx, dfirst


def _score_gradients(call: _Call, writes: Tensor, do: Tensor, dx: Tensor) -> tuple[Tensor, ...]:
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_score_gradients

    dp, da = torch.empty_like(call.kept)
    dv, db = torch.empty_like(call.v), torch.empty_like(call.g)
    delta_score_gradients[call.n_chunks, call.n_heads](
        call.v, call.b, call.g, writes, do, dx, dp, da, dv, db, *call.by_chunk, call.scale,
        **call.sizes("HVC"), BV=min(call.v.shape[-1], TILINGS["score_gradients"].columns),
        **_launch("score_gradients"),
    )  # fmt: skip
    return dp, da, dv, db


def _key_gradients(
    call: _Call, states: Tensor, dstates: Tensor, writes: Tensor, do: Tensor, dx: Tensor,
    dp: Tensor, da: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_key_gradients

    tiling, k_dim = TILINGS["key_gradients"], call.k.shape[-1]
    columns = min(k_dim, tiling.columns)
    n_parts = k_dim // columns
    dq, dk = (call.k.new_empty(*call.g.shape, k_dim) for _ in range(2))
    dg, db = (call.g.new_empty(n_parts, *call.g.shape) for _ in range(2))
    delta_key_gradients[n_parts * call.n_chunks, call.n_heads](
        call.q, call.k, call.b, call.g, states, dstates, writes, do, dx, dp, da, dq, dk, dg, db,
        *call.by_chunk, call.scale, call.g.numel() // call.n_heads,
        **call.sizes("GHKVC"), BK=columns, BV=min(call.v.shape[-1], tiling.depth),
        **_launch("key_gradients"),
    )  # fmt: skip
    n_shared = call.n_heads // call.k.shape[2]
    if n_shared > 1:
        dq, dk = (x.unflatten(2, (-1, n_shared)).sum(3) for x in (dq, dk))
    return dq, dk, dg, db


def _sum_parts(call: _Call, dg: Tensor, db: Tensor, db_v: Tensor) -> tuple[Tensor, Tensor]:
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_sum_parts

    dlog_a, db_all = torch.empty_like(call.g), torch.empty_like(call.g)
    delta_sum_parts[call.n_chunks, call.n_heads](
        dg, db, db_v, dlog_a, db_all, *call.by_chunk, call.g.numel() // call.n_heads,
        **call.sizes("HC"), PARTS=len(dg),
    )  # fmt: skip
    return dlog_a, db_all
