"""Muon: momentum whose update is made orthogonal, batched over equal shapes; AdamW for the rest.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon), coefficients of the Newton-Schulz iteration included; the
scaling `match_rms_adamw` is from Liu et al., "Muon is Scalable for LLM Training",
arXiv:2502.16982, section 2.2.

Ours: the arithmetic of `torch.optim.Muon`, but matrices of equal shape are iterated together, and
stacks of matrices (E, rows, columns) count as E matrices. A tall matrix is iterated from the right
and not transposed; the polynomial in X X^T on the left equals the one in X^T X on the right.

Cost: per matrix and iteration 4 r^2 c + 2 r^3 multiply-adds' FLOPs, r <= c being its sides.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixlab.parallel.shards import all_rows, is_sharded, own_rows, rows_for, same_rows
from mixlab.training.optimizers.adamw import AdamW, AdamWConfig
from mixlab.training.optimizers.base import Optimizer, OptimizerConfig, scale_gradients
from mixlab.training.optimizers.groups import NamedParameter, is_hidden_matrix, trainable

# The quintic's coefficients: the steepest slope at 0 that keeps singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7

# Elements iterated in one batch. On CPU the iterates should stay in the cache: measured on a
# server core, 2**19 beats both one matrix at a time and everything at once. Elsewhere the limit
# only bounds the temporary memory.
_CPU_BATCH_ELEMENTS = 2**19
_DEVICE_BATCH_ELEMENTS = 2**26

_NS_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class MuonConfig(OptimizerConfig):
    """Muon for the hidden matrices, AdamW for everything else (`optimizers/groups.py`)."""

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=5e-3, gt=0)
    """Peak learning rate of the matrices."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay rate of the running mean of the gradient."""
    nesterov: bool = True
    """Look one update ahead: mix the gradient into the mean once more before the iteration."""
    ns_steps: int = Field(default=5, ge=1, lt=100)
    """Newton-Schulz iterations."""
    ns_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the iteration. float32 is the faster one only on processors that have no
    bfloat16 instructions; the two give slightly different runs."""
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Size of an update: 0.2 sqrt(max(rows, columns)) has AdamW's typical size per weight, so that
    AdamW's learning rates and decay fit, or sqrt(max(1, rows / columns)) as in the first
    publication, which goes with a learning rate near 0.02."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay, per unit of learning rate."""
    rest: AdamWConfig = AdamWConfig()
    """For embeddings, the head, routers, convolutions, norms, biases and other vectors."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> "Muon":
        return Muon(self, trainable(named_parameters))


class Muon(Optimizer):
    """See `MuonConfig`. State: one mean per matrix, and AdamW's for the rest."""

    def __init__(self, cfg: MuonConfig, params: list[NamedParameter]) -> None:
        super().__init__(p for _, p in params)
        self._cfg = cfg
        matrices = [item for item in params if is_hidden_matrix(item.name, item.parameter.shape)]
        taken = {item.name for item in matrices}
        rest = [item for item in params if item.name not in taken]
        self._rest = AdamW(cfg.rest, rest) if rest else None
        self.kernel = "batched products"
        if self._rest is not None:
            self.kernel += f", the rest by {self._rest.kernel}"
        self._momentum = {
            name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in matrices
        }
        self._buckets = _buckets(matrices)

    @torch.no_grad()
    def step(self, lr_factor: float, clip: Tensor | None = None) -> None:
        scale_gradients([item.parameter for bucket in self._buckets for item in bucket], clip)
        for bucket in self._buckets:
            with_grad = [item for item in bucket if item.parameter.grad is not None]
            if with_grad:
                self._update(with_grad, self._cfg.lr * lr_factor)
        if self._rest is not None:
            self._rest.step(lr_factor, clip)

    def _update(self, bucket: Sequence[NamedParameter], lr: float) -> None:
        """One update of parameters that share the shape of their matrices, dtype and device.

        Of sharded ones every rank has its rows; the iteration needs all, and is done by every rank.
        """
        cfg = self._cfg
        whole = [p for _, p in bucket]
        params = [own_rows(p) for p in whole]
        grads = [own_rows(p.grad) for p in whole]
        means = [own_rows(self._momentum[name]) for name, _ in bucket]
        rows, columns = whole[0].shape[-2:]

        torch._foreach_lerp_(means, grads, 1 - cfg.momentum)
        updates = torch._foreach_lerp(grads, means, cfg.momentum) if cfg.nesterov else means
        counts = [p.numel() // (rows * columns) for p in whole]

        def pieces(stack: Tensor) -> list[Tensor]:
            return [s.view(p.shape) for s, p in zip(stack.split(counts), whole, strict=True)]

        # Stacked and narrowed in one pass over the updates.
        dtype = _NS_DTYPES[cfg.ns_dtype]
        stack = params[0].new_empty(sum(counts), rows, columns, dtype=dtype)
        pairs = zip(whole, updates, strict=True)
        gathered = [all_rows(same_rows(p, u.to(dtype))) if is_sharded(p) else u for p, u in pairs]
        torch._foreach_copy_(pieces(stack), gathered)
        stack = orthogonalise(stack, cfg.ns_steps).to(params[0].dtype)
        torch._foreach_mul_(params, 1 - lr * cfg.weight_decay)
        step = lr * update_scale(cfg.scale, rows, columns)
        steps = [rows_for(p, piece) for p, piece in zip(whole, pieces(stack), strict=True)]
        torch._foreach_add_(params, steps, alpha=-step)

    def state_tensors(self) -> dict[str, Tensor]:
        state = {f"muon/momentum/{name}": mean for name, mean in self._momentum.items()}
        return state | (self._rest.state_tensors() if self._rest is not None else {})


def update_scale(scale: str, rows: int, columns: int) -> float:
    """What an orthogonal update is multiplied by, beside the learning rate."""
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def orthogonalise(matrices: Tensor, n_iterations: int) -> Tensor:
    """Bring all singular values near 1, keeping the singular vectors: (N, r, c) -> (N, r, c).

    Newton-Schulz in the dtype of `matrices`. With these coefficients the singular values end
    between about 0.7 and 1.2 rather than at 1, which does no harm to training.
    """
    pieces = [_iterate(piece, n_iterations) for piece in matrices.split(_batch_size(matrices))]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _iterate(x: Tensor, n_iterations: int) -> Tensor:
    is_tall = x.size(-2) > x.size(-1)
    side = min(x.shape[-2:])
    # The Frobenius norm bounds the largest singular value.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    spare = torch.empty_like(x)
    gram = x.new_empty(x.size(0), side, side)
    polynomial = torch.empty_like(gram)
    # The buffers are reused: fresh ones of this size cost more page faults than arithmetic.
    for _ in range(n_iterations):
        left, right = (x.mT, x) if is_tall else (x, x.mT)
        torch.bmm(left, right, out=gram)
        torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C, out=polynomial)
        left, right = (x, polynomial) if is_tall else (polynomial, x)
        torch.baddbmm(x, left, right, beta=_A, out=spare)
        x, spare = spare, x
    return x


def _batch_size(x: Tensor) -> int:
    """How many matrices of the last two dimensions of `x` are iterated together."""
    limit = _CPU_BATCH_ELEMENTS if x.device.type == "cpu" else _DEVICE_BATCH_ELEMENTS
    return max(1, limit // (x.size(-2) * x.size(-1)))


def _buckets(params: Sequence[NamedParameter]) -> list[list[NamedParameter]]:
    """Parameters that are updated together: matrices of one shape, within the batch limit."""

    def form(item: NamedParameter) -> tuple[str, ...]:
        p = item.parameter
        return (*map(str, p.shape[-2:]), str(p.dtype), str(p.device))

    buckets: list[list[NamedParameter]] = []
    for _, group in groupby(sorted(params, key=form), key=form):
        n_matrices = math.inf
        for item in group:
            p = item.parameter
            n_new = p.numel() // (p.size(-2) * p.size(-1))
            if n_matrices + n_new > _batch_size(p):
                buckets.append([])
                n_matrices = 0
            buckets[-1].append(item)
            n_matrices += n_new
    return buckets
