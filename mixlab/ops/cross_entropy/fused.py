"""The loss and its gradients for a GPU: large chunks, one Triton kernel between matrix products.

Products run in cuBLAS, and the weight's gradient is summed there in float32. A chunk's logits are
read twice, the second time from the GPU's cache, and overwritten by their gradient: the vocabulary
never exists in float32, and nothing waits for the device. Packages that keep less than a chunk of
logits (cut-cross-entropy, arXiv:2411.09009) make every product twice instead; those of liger-kernel
and quack go by chunks too, of fewer rows.
"""

import torch
from torch import Tensor

from mixlab.ops.cross_entropy.gpu_chunks import chunk_rows
from mixlab.ops.cross_entropy.triton_kernels import nats_to_gradient


def run(
    h: Tensor, weight: Tensor, targets: Tensor, wants_dh: bool, wants_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See operator.nats_and_gradients; h and weight come in one dtype."""
    n_rows, n_vocab = h.shape[0], weight.shape[0]
    nats = h.new_empty(n_rows, dtype=torch.float32)
    dh = torch.empty_like(h) if wants_dh else h.new_empty(0)
    dweight: Tensor | None = None
    chunk = chunk_rows(n_rows, n_vocab, h.element_size())
    logits = h.new_empty(min(chunk, n_rows), n_vocab)
    for start in range(0, n_rows, chunk):
        rows = slice(start, min(start + chunk, n_rows))
        piece = torch.mm(h[rows], weight.T, out=logits[: rows.stop - start])
        nats_to_gradient(piece, targets[rows], nats[rows], wants_dh or wants_dweight)
        if wants_dh:
            torch.mm(piece, weight, out=dh[rows])
        if wants_dweight:
            dweight = add_product(dweight, piece.T, h[rows])
    if dweight is None:
        dweight = nats.new_zeros(weight.shape if wants_dweight else (0,))
    return nats.sum(), dh, dweight


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b in float32, added up inside the matrix product."""
    if a.dtype == torch.float32:
        return a @ b if total is None else total.addmm_(a, b)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
