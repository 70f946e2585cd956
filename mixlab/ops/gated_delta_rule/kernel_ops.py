"""GPU kernels of the delta rule as operators that torch.compile takes whole.

Each kernel is a pair of operators, forward and backward, with rules for shapes and gradients: a
compiled block holds them as two opaque nodes and has no break. What they need beside tensors of
the model are tables of the packed documents, which `Packing` makes once for a batch: a layer never
waits for the device, and another number of documents compiles nothing anew.

Kept for backward beside the inputs: the running sum of log_a within its chunk, and C or 2 C numbers
per token and value head, the inverse of each chunk's triangular system. States are made again.
Shapes: B batch, T tokens, G key heads, H value heads, K key width, V value width, C = 64 tokens of
        a chunk, N documents.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mixlab.ops.dtypes import at_least_float32
from mixlab.ops.gated_delta_rule.flops import count_flops
from mixlab.ops.gated_delta_rule.l2_norm import l2_norm
from mixlab.ops.packing import Packing

CHUNK = 64
"""Tokens of a chunk in every one of these kernels."""


class Documents(NamedTuple):
    """Where the documents of a packed batch lie in its B * T tokens; int32, on the device."""

    cu_seqlens: Tensor  # (N + 1,), first token of each document, and the end
    chunk_indices: Tensor  # (n_chunks, 2), document and number of the chunk within it
    chunk_offsets: Tensor  # (N + 1,), first chunk of each document, and the end


class Saved(NamedTuple):
    """What a forward call returns; the last two are for its backward."""

    o: Tensor  # (B, T, H, V)
    state: Tensor  # (B, H, K, V) float32 after the last token; empty unless asked for
    g: Tensor  # (B, T, H) float32, running sum of log_a within the chunk, in the kernel's own unit
    kept: Tensor  # (n, B, T, H, C) in the dtype of k, rows of (I + A)^-1 and what goes with them


class Kernel(NamedTuple):
    """One implementation. Its tensors are contiguous; packed rows come as one row with documents.

    forward(q, k, v, log_a, b, state, documents, final_state) -> Saved
    backward(q, k, v, g, b, kept, state, do, dstate, documents)
        -> dq, dk, dv, dlog_a, db, dstate or None
    """

    forward: Callable[..., tuple]
    backward: Callable[..., tuple]


KERNELS: dict[str, Kernel] = {}
_FORWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor log_a, Tensor b, Tensor? state, Tensor? cu_seqlens, "
    "Tensor? chunk_indices, Tensor? chunk_offsets, bool final_state) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor b, Tensor kept, Tensor? state, Tensor do, "
    "Tensor? dstate, Tensor? cu_seqlens, Tensor? chunk_indices, Tensor? chunk_offsets) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def register(name: str, kernel: Kernel, n_kept: int = 1) -> None:
    """Make the operators mixlab::delta_rule_NAME and mixlab::delta_rule_NAME_backward.

    `n_kept`: how many times C numbers per token and head the forward call keeps.
    """
    KERNELS[name] = kernel
    forward = torch.library.custom_op(
        f"mixlab::delta_rule_{name}", _forward(name), mutates_args=(), schema=_FORWARD
    )
    backward = torch.library.custom_op(
        f"mixlab::delta_rule_{name}_backward", _backward(name), mutates_args=(), schema=_BACKWARD
    )
    forward.register_fake(_forward_shapes(n_kept))
    backward.register_fake(_backward_shapes)
    forward.register_autograd(_gradient(name), setup_context=_keep)
    count_flops(name)


def run_kernel(
    name: str, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor,
    state: Tensor | None, packing: Packing | None, normalize_qk: bool, final_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Outputs (B, T, H, V), and the state after the last token if `final_state`, else None."""
    dtype = q.dtype
    if normalize_qk:
        # In the open, so that a compiler joins it to whatever made queries and keys.
        q, k = (l2_norm(at_least_float32(x)).to(dtype) for x in (q, k))
    documents = (None, None, None) if packing is None else documents_of(packing)
    state = None if state is None else at_least_float32(state)
    op = getattr(torch.ops.mixlab, f"delta_rule_{name}")
    o, final, _, _ = op(
        q,
        k,
        v.to(dtype),
        *(at_least_float32(x) for x in (log_a, b)),
        state,
        *documents,
        final_state,
    )
    return o.to(v.dtype), final if final_state else None


def documents_of(packing: Packing) -> Documents:
    return Documents(packing.cu_seqlens, packing.chunk_indices, packing.chunk_offsets)


def _forward(name: str) -> Callable[..., tuple[Tensor, ...]]:
    def forward(
        q, k, v, log_a, b, state, cu_seqlens, chunk_indices, chunk_offsets, final_state
    ):  # fmt: skip
        shape = v.shape
        documents = _documents(cu_seqlens, chunk_indices, chunk_offsets)
        q, k, v, log_a, b = _in_rows((q, k, v, log_a, b), documents)
        with torch.cuda.device_of(v):
            o, final, g, kept = KERNELS[name].forward(
                q, k, v, log_a, b, state, documents, final_state
            )
        final = v.new_empty(0, dtype=torch.float32) if final is None else final
        return o.view(shape), final, g.view(shape[:3]), kept.view(-1, *shape[:3], CHUNK)

    return forward


def _backward(name: str) -> Callable[..., tuple[Tensor, ...]]:
    def backward(q, k, v, g, b, kept, state, do, dstate, cu_seqlens, chunk_indices, chunk_offsets):
        shapes = [x.shape for x in (q, k, v, g, b)]
        documents = _documents(cu_seqlens, chunk_indices, chunk_offsets)
        q, k, v, g, b, do = _in_rows((q, k, v, g, b, do), documents)
        kept = kept.contiguous().view(len(kept), *v.shape[:3], CHUNK)
        dstate = None if dstate is None else dstate.contiguous()
        with torch.cuda.device_of(v):
            *grads, dinitial = KERNELS[name].backward(
                q, k, v, g, b, kept, state, do, dstate, documents
            )
        grads = [
            x.to(like.dtype).view(shape)
            for x, like, shape in zip(grads, (q, k, v, g, b), shapes, strict=True)
        ]
        return (*grads, v.new_empty(0, dtype=torch.float32) if state is None else dinitial)

    return backward


def _documents(cu_seqlens, chunk_indices, chunk_offsets) -> Documents | None:
    return None if cu_seqlens is None else Documents(cu_seqlens, chunk_indices, chunk_offsets)


def _in_rows(tensors: tuple[Tensor, ...], documents: Documents | None) -> list[Tensor]:
    """Contiguous; packed rows as one long row, (1, B * T, ...)."""
    if documents is None:
        return [x.contiguous() for x in tensors]
    return [x.reshape(1, -1, *x.shape[2:]).contiguous() for x in tensors]


def _forward_shapes(n_kept: int) -> Callable[..., tuple[Tensor, ...]]:
    def shapes(q, k, v, log_a, b, state, cu_seqlens, chunk_indices, chunk_offsets, final_state):
        n_rows, n_tokens, n_heads, v_dim = v.shape
        final = (n_rows, n_heads, k.shape[-1], v_dim) if final_state else (0,)
        return (
            v.new_empty(v.shape),
            v.new_empty(final, dtype=torch.float32),
            v.new_empty((n_rows, n_tokens, n_heads), dtype=torch.float32),
            k.new_empty((n_kept, n_rows, n_tokens, n_heads, CHUNK)),
        )

    return shapes


def _backward_shapes(
    q, k, v, g, b, kept, state, do, dstate, cu_seqlens, chunk_indices, chunk_offsets
):
    grads = tuple(x.new_empty(x.shape) for x in (q, k, v, g, b))
    dstate_shape = (0,) if state is None else state.shape
    return (*grads, v.new_empty(dstate_shape, dtype=torch.float32))


def _keep(ctx, inputs, output) -> None:
    q, k, v, _, b, state, *documents, _ = inputs
    _, _, g, kept = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(g, kept)
    ctx.save_for_backward(q, k, v, g, b, kept, state, *documents)


def _gradient(name: str) -> Callable[..., tuple]:
    def gradient(ctx, do, dfinal, _dg, _dkept):
        q, k, v, g, b, kept, state, *documents = ctx.saved_tensors
        do = torch.zeros_like(v) if do is None else do
        dfinal = None if dfinal is None or dfinal.numel() == 0 else dfinal
        op = getattr(torch.ops.mixlab, f"delta_rule_{name}_backward")
        *grads, dstate = op(q, k, v, g, b, kept, state, do, dfinal, *documents)
        return (*grads, None if state is None else dstate, None, None, None, None)

    return gradient
