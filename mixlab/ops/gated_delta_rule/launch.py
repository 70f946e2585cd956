"""The delta rule by the Triton kernels of this package: what is launched on what.

What the kernels compute is in `triton_kernels` and `triton_gradients`.
"""

from functools import lru_cache
from typing import Any, NamedTuple

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


WIDTHS = (64, 128, 256)
"""Key widths; a program holds whole keys, and value columns in blocks of 64."""
MEMORY = {64: 48_000, 128: 64_000, 256: 110_000}
"""Shared memory, in bytes, that the largest program of a key width asks for with one stage."""
ROOMY = 220_000
"""Shared memory, in bytes, from which on there is room for all stages below."""
TILINGS = {
    "prepare": {64: Tiling(64, 4, 3), 128: Tiling(128, 4, 2), 256: Tiling(64, 4, 3)},
    "scan_states": {64: Tiling(64, 4, 3), 128: Tiling(64, 4, 1), 256: Tiling(64, 4, 3)},
    "scan_outputs": {64: Tiling(64, 4, 3), 128: Tiling(64, 4, 3), 256: Tiling(64, 4, 2)},
    "scan_gradients": {64: Tiling(64, 4, 3), 128: Tiling(64, 4, 3), 256: Tiling(64, 4, 1)},
    "score_gradients": {64: Tiling(64, 4, 3), 128: Tiling(64, 4, 3), 256: Tiling(64, 4, 3)},
    "key_gradients": {64: Tiling(64, 4, 3), 128: Tiling(64, 4, 3), 256: Tiling(64, 4, 3)},
}
"""By kernel and key width: the fastest found on an H200 at 48 x 1,024 tokens."""


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


def forward(q, k, v, log_a, b, state, documents: Documents | None, final_state):
    """As `kernel_ops.Kernel` says."""
    documents = documents or whole_rows(*v.shape[:2], v.device)
    call = _Call(q, k, v, b, torch.empty_like(b), k.new_empty(2, *b.shape, CHUNK), documents)
    _prepare(call, log_a)
    o, final = torch.empty_like(v), None
    if final_state:
        shape = (len(documents.cu_seqlens) - 1, v.shape[2], k.shape[-1], v.shape[-1])
        final = v.new_empty(shape, dtype=torch.float32)
    _scan(call, "scan_outputs", state, o=o, final=final)
    return o, final, call.g, call.kept


def backward(q, k, v, g, b, kept, state, do, dstate, documents: Documents | None):
    """As `kernel_ops.Kernel` says."""
    call = _Call(q, k, v, b, g, kept, documents or whole_rows(*v.shape[:2], v.device))
    states, writes = call.states(), torch.empty_like(v)
    _scan(call, "scan_states", state, states=states, writes=writes)
    dstates, dx, dinitial = _scan_gradients(call, do, dstate, state)
    dp, da, dv, db_v = _score_gradients(call, writes, do, dx)
    dq, dk, dg, db = _key_gradients(call, states, dstates, writes, do, dx, dp, da)
    return dq, dk, dv, *_sum_parts(call, dg, db, db_v), dinitial


@lru_cache(maxsize=16)
def whole_rows(n_rows: int, n_tokens: int, device: torch.device) -> Documents:
    """The tables of rows that are a document each."""
    cu_seqlens = torch.arange(n_rows + 1, dtype=torch.int32) * n_tokens
    return Documents(*(x.to(device) for x in (cu_seqlens, *chunk_table(cu_seqlens, CHUNK))))


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

    def narrowed(self, columns: int) -> int:
        """As many columns, or so few that a scan keeps up to every multiprocessor busy.

        With few heads of a long text a scan is a chain of small products, and narrower ones take
        less time: 0.50 ms instead of 0.67 for 6 heads of 16,384 tokens on an H200. Every width is
        compiled by itself, for which training has no time to wait. Only keys of 128 were tried.
        """
        if self.k.shape[-1] != 128:
            return columns
        while columns > 16 and 2 * self.lanes(columns)[0] <= _n_processors(self.k.device):
            columns //= 2
        return columns

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

    def tiling(self, name: str) -> tuple[Tiling, dict[str, int]]:
        """And as launch options."""
        tiling = TILINGS[name][self.k.shape[-1]]
        stages = tiling.stages if _is_roomy(self.k.device) else 1
        return tiling, {"num_warps": tiling.warps, "num_stages": stages}


@lru_cache(maxsize=16)
def _is_roomy(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= ROOMY


@lru_cache(maxsize=16)
def _n_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _by_rows(x: Tensor, columns: int) -> Any:
    """A descriptor of (..., heads, width) as (M, heads * width), in tiles of a chunk's rows."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-2] * x.shape[-1]), [CHUNK, columns])


def _by_states(x: Tensor, columns: int) -> Any:
    """A descriptor of (n_chunks, H, K, V) as (n_chunks * H * K, V), in tiles of K rows."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [x.shape[-2], columns])


def _prepare(call: _Call, log_a: Tensor) -> None:
    """Fill `call.g` and `call.kept`."""
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_prepare

    tiling, options = call.tiling("prepare")
    delta_prepare[call.n_chunks, call.n_heads](
        call.q, call.k, log_a, call.b, call.g, *call.kept, *call.by_chunk, call.scale,
        **call.sizes("GHKC"), BK=tiling.columns, **options,
    )  # fmt: skip


def _scan(
    call: _Call, name: str, first: Tensor | None, o: Tensor | None = None,
    final: Tensor | None = None, states: Tensor | None = None, writes: Tensor | None = None,
) -> None:  # fmt: skip
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_scan_states

    (columns, *_), options = call.tiling(name)
    if final is not None:
        columns = call.narrowed(columns)
    k_dim, reads = call.k.shape[-1], o is not None
    delta_scan_states[call.lanes(columns)](
        _by_rows(call.q, k_dim) if reads else None, _by_rows(call.k, k_dim),
        _by_rows(call.v, columns), call.b, call.g, _by_rows(call.kept[0], CHUNK),
        _by_rows(call.kept[1], CHUNK) if reads else None, first, o, final,
        None if reads else _by_states(states, columns), writes,
        *call.by_document, call.scale,
        **call.sizes("GHKVC"), BV=columns,
        HAS_FIRST=first is not None, HAS_FINAL=final is not None, READS=reads, **options,
    )  # fmt: skip


def _scan_gradients(
    call: _Call, do: Tensor, dfinal: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    from mixlab.ops.gated_delta_rule.triton_kernels import delta_scan_gradients

    (columns, *_), options = call.tiling("scan_gradients")
    dstates, dx, k_dim = call.states(), torch.empty_like(call.v), call.k.shape[-1]
    dfirst = None if first is None else torch.empty_like(first)
    delta_scan_gradients[call.lanes(columns)](
        _by_rows(call.q, k_dim), _by_rows(call.k, k_dim), call.b, call.g,
        *(_by_rows(x, CHUNK) for x in call.kept), _by_rows(do, columns),
        dfinal, dfirst, _by_states(dstates, columns), dx, *call.by_document, call.scale,
        **call.sizes("GHKVC"), BV=columns,
        HAS_FIRST=first is not None, HAS_FINAL=dfinal is not None, **options,
    )  # fmt: skip
    return dstates, dx, dfirst


def _score_gradients(call: _Call, writes: Tensor, do: Tensor, dx: Tensor) -> tuple[Tensor, ...]:
    from mixlab.ops.gated_delta_rule.triton_gradients import delta_score_gradients

    (columns, *_), options = call.tiling("score_gradients")
    dp, da = torch.empty_like(call.kept)
    dv, db = torch.empty_like(call.v), torch.empty_like(call.g)
    delta_score_gradients[call.n_chunks, call.n_heads](
        call.v, call.b, call.g, writes, do, dx, dp, da, dv, db, *call.by_chunk, call.scale,
        **call.sizes("HVC"), BV=columns, **options,
    )  # fmt: skip
    return dp, da, dv, db


def _key_gradients(
    call: _Call, states: Tensor, dstates: Tensor, writes: Tensor, do: Tensor, dx: Tensor,
    dp: Tensor, da: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    from mixlab.ops.gated_delta_rule.triton_gradients import delta_key_gradients

    tiling, options = call.tiling("key_gradients")
    k_dim, columns, depth = call.k.shape[-1], tiling.columns, tiling.depth
    n_parts = k_dim // columns
    dq, dk = (call.k.new_empty(*call.g.shape, k_dim) for _ in range(2))
    dg, db = (call.g.new_empty(n_parts, *call.g.shape) for _ in range(2))
    delta_key_gradients[n_parts * call.n_chunks, call.n_heads](
        call.q, call.k, call.b, call.g, states, dstates, writes, do, dx, dp, da, dq, dk, dg, db,
        *call.by_chunk, call.scale, call.g.numel() // call.n_heads,
        **call.sizes("GHKVC"), BK=columns, BV=depth, **options,
    )  # fmt: skip
    n_shared = call.n_heads // call.k.shape[2]
    if n_shared > 1:
        dq, dk = (x.unflatten(2, (-1, n_shared)).sum(3) for x in (dq, dk))
    return dq, dk, dg, db


def _sum_parts(call: _Call, dg: Tensor, db: Tensor, db_v: Tensor) -> tuple[Tensor, Tensor]:
    from mixlab.ops.gated_delta_rule.triton_gradients import delta_sum_parts

    dlog_a, db_all = torch.empty_like(call.g), torch.empty_like(call.g)
    delta_sum_parts[call.n_chunks, call.n_heads](
        dg, db, db_v, dlog_a, db_all, *call.by_chunk, call.g.numel() // call.n_heads,
        **call.sizes("HC"), PARTS=len(dg),
    )  # fmt: skip
    return dlog_a, db_all
